//! The slow clients. One that is cut off is followed by the next, so that there are as many all the time.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::runtime::Runtime;

use super::PATIENCE;
use super::honest::Connection;

/// Connections of one address: fewer than a server gives one, because a new one comes before the old one is counted out.
const OF_ONE_ADDRESS: usize = 900;
/// So many begin at once, because a system keeps no more of them waiting to be taken.
const AT_ONCE: usize = 250;
/// A byte comes after so long.
const DRIP: Duration = Duration::from_secs(1);
/// After a connection that was refused.
const BREATHER: Duration = Duration::from_millis(200);

/// How a client is slow.
#[derive(Debug, Clone, Copy)]
enum Slow {
    Head,
    Body,
    Idle,
}

impl Slow {
    fn of(number: usize) -> Self {
        [Self::Head, Self::Body, Self::Idle][number % 3]
    }
}

/// Slow clients that are at it until they are stopped.
#[derive(Debug)]
pub(super) struct Drips {
    runtime: Runtime,
    up: Arc<AtomicUsize>,
}

impl Drips {
    /// Returns when nearly all are connected.
    pub(super) fn start(address: SocketAddr, connections: usize) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let up = Arc::new(AtomicUsize::new(0));
        let this = Self { runtime, up };
        this.runtime.block_on(async {
            for number in 0..connections {
                tokio::spawn(client(address, number, Arc::clone(&this.up)));
                if number % AT_ONCE == AT_ONCE - 1 {
                    this.reach(number * 9 / 10).await?;
                }
            }
            this.reach(connections * 9 / 10).await
        })?;
        Ok(this)
    }

    /// How many are connected, and slow.
    pub(super) fn up(&self) -> usize {
        self.up.load(Ordering::Relaxed)
    }

    async fn reach(&self, wanted: usize) -> anyhow::Result<()> {
        let reached = tokio::time::timeout(PATIENCE, async {
            while self.up() < wanted {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        reached.await.with_context(|| {
            format!(
                "only {} of {wanted} slow clients could connect within {PATIENCE:?}; hint: they come from addresses \
                 127.0.1.x, which Linux has without being told",
                self.up()
            )
        })
    }

    pub(super) fn stop(self) {
        self.runtime.shutdown_timeout(PATIENCE);
    }
}

async fn client(address: SocketAddr, number: usize, up: Arc<AtomicUsize>) {
    loop {
        match connect(address, number).await {
            Ok(stream) => {
                let _up = Up::new(&up);
                // It ends when the server has had enough: that is what it is there for.
                let _cut_off = drip(stream, Slow::of(number)).await;
            }
            Err(_) => tokio::time::sleep(BREATHER).await,
        }
    }
}

/// Counts as long as it is there.
struct Up<'a>(&'a AtomicUsize);

impl<'a> Up<'a> {
    fn new(up: &'a AtomicUsize) -> Self {
        up.fetch_add(1, Ordering::Relaxed);
        Self(up)
    }
}

impl Drop for Up<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn connect(address: SocketAddr, number: usize) -> io::Result<TcpStream> {
    let group = u8::try_from(number / OF_ONE_ADDRESS + 1).unwrap_or(u8::MAX);
    let socket = TcpSocket::new_v4()?;
    // Of the many that were closed a moment ago none stands in the way.
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::from((IpAddr::from(Ipv4Addr::new(127, 0, 1, group)), 0)))?;
    socket.connect(address).await
}

async fn drip(stream: TcpStream, slow: Slow) -> anyhow::Result<()> {
    let stream = match slow {
        Slow::Head => begun(stream, "GET /docs HTTP/1.1\r\nX-Slow: ").await?,
        Slow::Body => {
            let head = "POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
                        Content-Length: 100000\r\n\r\n";
            begun(stream, head).await?
        }
        Slow::Idle => {
            let mut connection = Connection::over(stream);
            connection.ask("GET /problems/forbidden HTTP/1.1\r\nHost: localhost\r\n\r\n").await?;
            connection.into_stream()
        }
    };
    let (mut reading, mut writing) = stream.into_split();
    let mut some = [0; 1024];
    loop {
        tokio::select! {
            read = reading.read(&mut some) => if read? == 0 { return Ok(()) },
            () = tokio::time::sleep(DRIP) => match slow {
                Slow::Head | Slow::Body => writing.write_all(b"1").await?,
                Slow::Idle => {}
            },
        }
    }
}

async fn begun(mut stream: TcpStream, what: &str) -> io::Result<TcpStream> {
    stream.write_all(what.as_bytes()).await?;
    Ok(stream)
}
