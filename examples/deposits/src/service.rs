//! A part of this application that listens on 127.0.0.1: how the gateway, the twin and the intake start and stop.
//!
//! It binds, announces `listening 127.0.0.1:PORT` on one line for whoever started the process, serves until it is told to
//! stop, and then ends in good order: what is in work is answered first. What it serves is not known here.

use std::future::Future;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tokio::task::JoinHandle;

const BACKLOG: u32 = 1024;
/// An idle keep-alive connection would keep a graceful stop waiting for its client.
const PATIENCE: Duration = Duration::from_secs(5);

/// A running service. Dropping it ends it without waiting: as a kill would, or, the gateway, as [`Service::stop`] does.
#[derive(Debug)]
pub struct Service {
    name: &'static str,
    address: SocketAddr,
    stop: watch::Sender<bool>,
    task: JoinHandle<anyhow::Result<()>>,
    /// How long a stop waits before it kills. None: it ends by itself, and has to, or what it did is not in its ledger.
    patience: Option<Duration>,
}

/// The word that a service should stop.
#[derive(Debug, Clone)]
pub(crate) struct Stop(watch::Receiver<bool>);

impl Stop {
    /// # Cancel safety
    /// Safe: it only waits.
    pub(crate) async fn told(&mut self) {
        // An error means that the handle is gone, which stops the service as well.
        drop(self.0.wait_for(|stop| *stop).await);
    }
}

impl Service {
    /// Serves a router, on a free port if `port` is 0.
    pub(crate) fn of_router(name: &'static str, port: u16, router: Router) -> anyhow::Result<Self> {
        let (listener, _) = listen(port)?;
        let serve = |listener, mut stop: Stop| async move {
            let served = axum::serve(listener, router).with_graceful_shutdown(async move { stop.told().await }).await;
            served.with_context(|| format!("the {name} stopped serving"))
        };
        Self::start(name, listener, Some(PATIENCE), serve)
    }

    /// Serves a listener in a way of its own, and ends by itself when it is told to stop.
    pub(crate) fn of_listener<F>(
        name: &'static str,
        listener: TcpListener,
        serve: impl FnOnce(TcpListener, Stop) -> F,
    ) -> anyhow::Result<Self>
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        Self::start(name, listener, None, serve)
    }

    fn start<F>(
        name: &'static str,
        listener: TcpListener,
        patience: Option<Duration>,
        serve: impl FnOnce(TcpListener, Stop) -> F,
    ) -> anyhow::Result<Self>
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let address = listener.local_addr().context("the listener has no address")?;
        let stop = watch::Sender::new(false);
        let task = tokio::spawn(serve(listener, Stop(stop.subscribe())));
        Ok(Self { name, address, stop, task, patience })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its base URL, without a slash at the end.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Announces where it listens, and serves until `shutdown` ends.
    ///
    /// # Errors
    /// The announcement cannot be written; what made it end before it was asked to.
    ///
    /// # Cancel safety
    /// Dropping the future drops the service.
    pub async fn run(
        mut self,
        mut announce: impl Write + Send,
        shutdown: impl Future<Output = ()> + Send,
    ) -> anyhow::Result<()> {
        writeln!(announce, "listening {}", self.address)
            .and_then(|()| announce.flush())
            .with_context(|| format!("cannot announce the {}'s address", self.name))?;
        tokio::select! {
            () = shutdown => self.stop().await,
            ended = &mut self.task => ended.with_context(|| format!("the {}'s task died", self.name))?,
        }
    }

    /// Stops it in good order: requests in work are answered, calls in work are finished.
    ///
    /// # Errors
    /// What made it end before it was asked to.
    ///
    /// # Cancel safety
    /// Dropping the future drops the service, which was told to stop at the first poll.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.stop.send_replace(true);
        let ended = match self.patience {
            None => (&mut self.task).await,
            Some(patience) => match tokio::time::timeout(patience, &mut self.task).await {
                Ok(ended) => ended,
                Err(_) => return Ok(()),
            },
        };
        ended.with_context(|| format!("the {}'s task died", self.name))?
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if self.patience.is_some() {
            self.task.abort();
        }
    }
}

/// Listens on 127.0.0.1, on a free port if it is 0, and says on which.
pub(crate) fn listen(port: u16) -> anyhow::Result<(TcpListener, u16)> {
    let listener = reserve(port)?.listen(BACKLOG).context("cannot listen")?;
    let address = listener.local_addr().context("the listener has no address")?;
    Ok((listener, address.port()))
}

/// A bound socket that does not listen: it holds the port, and a connect to it is refused.
pub(crate) fn reserve(port: u16) -> anyhow::Result<TcpSocket> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let socket = TcpSocket::new_v4().context("cannot make a socket")?;
    socket.set_reuseaddr(true).context("cannot set SO_REUSEADDR")?;
    socket.bind(address).with_context(|| format!("cannot bind {address}; hint: port 0 takes a free one"))?;
    Ok(socket)
}

/// Makes a reserved socket listen.
pub(crate) fn listen_on(reserved: TcpSocket) -> anyhow::Result<TcpListener> {
    reserved.listen(BACKLOG).context("cannot listen again")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_announces_where_it_listens_and_ends_when_it_is_told_to() {
        let service = Service::of_router("echo", 0, Router::new()).unwrap();
        let (address, mut announced) = (service.address(), Vec::new());
        service.run(&mut announced, async {}).await.unwrap();
        assert_eq!(String::from_utf8(announced).unwrap(), format!("listening {address}\n"));
    }

    #[tokio::test]
    async fn what_made_it_end_by_itself_is_the_error_of_its_stop() {
        let (listener, port) = listen(0).unwrap();
        let service =
            Service::of_listener("echo", listener, |_, _| async { anyhow::bail!("the disk is full") }).unwrap();
        assert_eq!(service.address().port(), port);
        assert_eq!(service.run(Vec::new(), std::future::pending()).await.unwrap_err().to_string(), "the disk is full");
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_named() {
        let (_listener, port) = listen(0).unwrap();
        let error = Service::of_router("echo", port, Router::new()).unwrap_err();
        assert!(format!("{error:#}").contains(&format!("127.0.0.1:{port}")), "{error:#}");
    }
}
