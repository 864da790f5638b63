//! `tidegate serve`: the store over HTTP, until it is told to stop.
//!
//! What is insecure has to be said by name: an address beyond loopback demands TLS and tokens. Told to stop once (SIGTERM,
//! Ctrl-C), it says so to whoever asks whether it is ready, answers those who wait, lets what is under way end and closes
//! the store; told a second time it ends at once. SIGHUP has it read its certificate again. Under systemd it says when it is
//! ready and that it lives, and takes sockets that were opened for it.

use std::net::{SocketAddr, TcpListener};
use std::num::NonZeroU32;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use sd_notify::NotifyState;
use tidegate::store::{Act, ChangeQueue, QueueChange};
use tidegate::{Address, Store, Tidegate};
use tidegate_server::{Demand, Guard, Health, Limits, Pace, Rate, Serve, Serving, Stop, Tls, router, serve};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use crate::config::{Named, gather};
use crate::exit::{Code, Problem};
use crate::log::{self, LogArgs};
use crate::open::{Access, check, place};
use crate::otlp;
use crate::output::Output;
use crate::settings::Settings;

/// What closing the store may take, and sending the last spans of traces.
const CLOSING: Duration = Duration::from_secs(10);

const EXAMPLES: &str = "\
Examples:
  tidegate serve
  tidegate serve --store /var/lib/tidegate/tidegate.db --listen 127.0.0.1:7401 --require-tokens
  tidegate serve --listen 0.0.0.0:7401 --tls-cert cert.pem --tls-key key.pem
  tidegate serve --config /etc/tidegate/config.toml --set limits.batch=100
  tidegate serve --log info --log-format json
  tidegate serve --otlp-endpoint http://127.0.0.1:4318";

const SIGNALS: &str = "\
Signals: SIGTERM or Ctrl-C lets what is under way end, for as long as --drain says; a second one ends at once. SIGHUP reads
the certificate again. What can be set besides: tidegate config list.";

/// Serve a store over HTTP: enqueue, work and operate from any language
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES, after_help = SIGNALS)]
pub(crate) struct Args {
    /// Where clients connect [default: 127.0.0.1:7401]
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<String>,
    /// The chain of certificates, as PEM
    #[arg(long, value_name = "FILE")]
    tls_cert: Option<String>,
    /// The key of the first certificate, as PEM
    #[arg(long, value_name = "FILE")]
    tls_key: Option<String>,
    /// Demand a token of clients on this machine as well; of others it always is
    #[arg(long)]
    require_tokens: bool,
    /// Listen beyond loopback without TLS: payloads and tokens can be read on the way
    #[arg(long)]
    insecure_plaintext: bool,
    /// Ask nobody for a token: whoever reaches it may do everything
    #[arg(long)]
    insecure_no_tokens: bool,
    /// How long requests under way are waited for when it stops [default: 25s]
    #[arg(long, value_name = "TIME")]
    drain: Option<String>,
    /// Stop when standard input closes: for a child that must not outlive its parent
    #[arg(long, hide = true)]
    stop_with_stdin: bool,
    #[command(flatten)]
    log: LogArgs,
    #[command(flatten)]
    named: Named,
}

impl Args {
    fn flags(&self) -> Vec<(&'static str, String, String)> {
        let mut flags = self.log.flags();
        let texts = [
            ("listen", "--listen", &self.listen),
            ("tls.cert", "--tls-cert", &self.tls_cert),
            ("tls.key", "--tls-key", &self.tls_key),
            ("drain", "--drain", &self.drain),
        ];
        for (key, flag, text) in texts {
            flags.extend(text.as_ref().map(|text| (key, text.clone(), flag.to_owned())));
        }
        let switches = [
            ("tokens.required", "--require-tokens", self.require_tokens),
            ("insecure.plaintext", "--insecure-plaintext", self.insecure_plaintext),
            ("insecure.no_tokens", "--insecure-no-tokens", self.insecure_no_tokens),
        ];
        flags.extend(
            switches.iter().filter(|(.., on)| *on).map(|(key, flag, _)| (*key, "true".to_owned(), (*flag).to_owned())),
        );
        flags
    }
}

pub(crate) async fn run(args: Args, store: Option<&str>, output: &Output) -> Result<Code, Problem> {
    let settings = gather(&args.named, store, args.flags());
    if let Some(problem) = settings.problem() {
        return Err(problem);
    }
    let written = log::begin(&settings, output)?;
    log::told(written, serve_until_told(&settings, written, args.stop_with_stdin, output).await)
}

async fn serve_until_told(
    settings: &Settings,
    written: log::Written,
    stop_with_stdin: bool,
    output: &Output,
) -> Result<Code, Problem> {
    settings.odd.iter().for_each(|odd| warn!("{odd}"));
    let mut signals = Signals::listen()?;
    if stop_with_stdin {
        signals.listen_to_input()?;
    }
    let running = Running::start(settings, inherited()?).await?;
    warn_without_tokens(&running.tide, running.demand).await?;
    for address in &running.addresses {
        let (store, url) = (&running.store, running.url(*address));
        match written {
            log::Written::Text => output.say(format!("serving {store} on {url}")),
            log::Written::Json => info!(store, url, "serving {store} on {url}"),
        }
    }
    if running.demand == Demand::Never {
        warn!("nobody is asked for a token: whoever reaches this server may do everything");
    }
    running.until_told(signals).await
}

/// Sockets that whoever started this process opened for it.
fn inherited() -> Result<Vec<TcpListener>, Problem> {
    let mut handed = listenfd::ListenFd::from_env();
    let mut listeners = Vec::new();
    for number in 0..handed.len() {
        let taken = handed.take_tcp_listener(number).map_err(|e| {
            Problem::usage(format!("socket {number} that was handed over is no TCP socket that listens: {e}"))
                .hint("ListenStream= with an address and a port in the .socket unit")
        })?;
        listeners.extend(taken);
    }
    Ok(listeners)
}

/// The signals that concern a server.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    reload: Signal,
    /// The end of standard input, where that counts as a signal, until it came.
    input: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Signals {
    pub(crate) fn listen() -> Result<Self, Problem> {
        let listen =
            |kind| signal(kind).map_err(|e| Problem::new(Code::Failed, format!("signals cannot be listened for: {e}")));
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            reload: listen(SignalKind::hangup())?,
            input: None,
        })
    }

    fn listen_to_input(&mut self) -> Result<(), Problem> {
        let ended = deposits::signal::input_ended()
            .map_err(|e| Problem::new(Code::Failed, format!("standard input cannot be watched: {e}")))?;
        self.input = Some(Box::pin(ended));
        Ok(())
    }
}

/// Once; nothing comes after it.
async fn ended(input: &mut Option<Pin<Box<dyn Future<Output = ()> + Send>>>) {
    match input {
        Some(waiting) => waiting.await,
        None => std::future::pending().await,
    }
    *input = None;
}

/// A server that takes connections.
pub(crate) struct Running {
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) store: String,
    pub(crate) demand: Demand,
    pub(crate) tide: Tidegate,
    tls: Option<Arc<Tls>>,
    stopping: tidegate_server::Stopping,
    stop: watch::Sender<Stop>,
    serving: JoinHandle<tidegate_server::Served>,
    /// Drives redrive operations on.
    driving: JoinHandle<()>,
    drain: Duration,
}

impl Running {
    /// Opens everything, and says to systemd that it is ready.
    pub(crate) async fn start(settings: &Settings, handed: Vec<TcpListener>) -> Result<Self, Problem> {
        let tls = certificate(settings)?;
        let listeners = if handed.is_empty() { vec![bind(settings.listen())?] } else { handed };
        let mut addresses = Vec::new();
        let mut sockets = Vec::new();
        for listener in listeners {
            let (address, socket) = registered(listener)?;
            addresses.push(address);
            sockets.push(socket);
        }
        refuse_exposed(&addresses, settings)?;
        let address = place(settings.store())?;
        let tide = open(&address, settings).await?;
        apply_queues(&**tide.store(), settings).await?;
        let demand = demand(&addresses, settings);
        raise_descriptors(settings.count("limits.connections"));
        let mut serving = Serving::new(tide.clone());
        serving.limits = limits(settings);
        serving.guard = Guard::new(Arc::clone(tide.store()), demand);
        serving.health = Arc::new(Health::new(Some(address.clone())));
        let health = Arc::clone(&serving.health);
        let stopping = serving.stopping.clone();
        let how = Serve {
            pace: pace(settings),
            connections: settings.count("limits.connections"),
            connections_per_peer: settings.count("limits.connections_per_peer"),
            request: settings.span("limits.wait") + Duration::from_secs(60),
            drain: settings.span("drain"),
            tls: tls.clone(),
            http: Arc::clone(&serving.http),
        };
        let (stop, told) = watch::channel(Stop::No);
        let drain = how.drain;
        let driving = tokio::spawn(serving.drive());
        let task = tokio::spawn(serve(sockets, router(serving), how, told));
        health.started();
        let store = address.to_string();
        tell_systemd(&[NotifyState::Ready, NotifyState::Status(&format!("serving {store}"))]);
        Ok(Self { addresses, store, demand, tide, tls, stopping, stop, serving: task, driving, drain })
    }

    pub(crate) fn url(&self, address: SocketAddr) -> String {
        format!("{}://{address}", if self.tls.is_some() { "https" } else { "http" })
    }

    /// Serves until a signal says otherwise.
    pub(crate) async fn until_told(mut self, mut signals: Signals) -> Result<Code, Problem> {
        let mut alive = Alive::new();
        let mut told = false;
        loop {
            tokio::select! {
                biased;
                _ = signals.terminate.recv() => if self.stop_on_signal(&mut told) { return Ok(Code::Interrupted) },
                _ = signals.interrupt.recv() => if self.stop_on_signal(&mut told) { return Ok(Code::Interrupted) },
                () = ended(&mut signals.input) => if self.stop_on_signal(&mut told) { return Ok(Code::Interrupted) },
                _ = signals.reload.recv() => self.reload(),
                () = alive.due() => tell_systemd(&[NotifyState::Watchdog]),
                served = &mut self.serving => {
                    let served = served.map_err(|e| Problem::new(Code::Failed, format!("the server ended: {e}")))?;
                    self.stopping.stop();
                    if let Err(error) = self.driving.await {
                        warn!("what drives operations on ended: {error}");
                    }
                    self.tide.close().await;
                    info!("stopped: {served}");
                    return if told { Ok(Code::Done) } else { Err(Problem::new(Code::Failed, "the server ended by itself")) };
                }
            }
        }
    }

    /// The first one lets everything end; whether it was the second.
    fn stop_on_signal(&self, told: &mut bool) -> bool {
        if std::mem::replace(told, true) {
            self.stop.send_replace(Stop::AtOnce);
            warn!("told to stop a second time: ending at once");
            otlp::give_up();
            return true;
        }
        info!("told to stop: no more connections; what is under way has {:?}", self.drain);
        let extended = u32::try_from((self.drain + CLOSING).as_micros()).unwrap_or(u32::MAX);
        tell_systemd(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(extended)]);
        // Those who wait for a message answer now; from here on nothing is claimed.
        self.stop.send_replace(Stop::Drain);
        self.stopping.stop();
        false
    }

    fn reload(&self) {
        match self.tls.as_ref().map(|tls| tls.reload()) {
            Some(Ok(())) => info!("the certificate was read again"),
            Some(Err(error)) => warn!("the certificate stays as it was: {error}"),
            None => info!("there is nothing to read again: no certificate is set"),
        }
    }
}

/// When systemd wants to hear that this process lives.
struct Alive(Option<tokio::time::Interval>);

impl Alive {
    fn new() -> Self {
        // Twice in its time, as systemd advises.
        Self(sd_notify::watchdog_enabled().map(|time| tokio::time::interval(time / 2)))
    }

    async fn due(&mut self) {
        match &mut self.0 {
            Some(interval) => drop(interval.tick().await),
            None => std::future::pending().await,
        }
    }
}

fn tell_systemd(states: &[NotifyState<'_>]) {
    // Without systemd there is nobody to tell, and that is no error.
    if let Err(error) = sd_notify::notify(states) {
        warn!("systemd cannot be told: {error}");
    }
}

fn certificate(settings: &Settings) -> Result<Option<Arc<Tls>>, Problem> {
    let (Some(certificate), Some(key)) = (settings.path("tls.cert"), settings.path("tls.key")) else { return Ok(None) };
    warn_if_readable(&key);
    let tls = Tls::load(certificate, key);
    tls.map(Some).map_err(|e| Problem::usage(e.to_string()).hint("--tls-cert and --tls-key name files of PEM"))
}

fn warn_if_readable(key: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    if std::fs::metadata(key).is_ok_and(|about| about.permissions().mode() & 0o007 != 0) {
        warn!("the key {} can be read by everybody on this machine", key.display());
    }
}

fn bind(address: SocketAddr) -> Result<TcpListener, Problem> {
    let failed = |e: std::io::Error| {
        Problem::new(Code::Conflict, format!("cannot listen on {address}: {e}"))
            .hint("another program may have it: --listen names another address")
    };
    let socket = if address.is_ipv4() { tokio::net::TcpSocket::new_v4() } else { tokio::net::TcpSocket::new_v6() };
    let socket = socket.map_err(failed)?;
    // What the one before left in the system's memory must not keep its successor waiting.
    socket.set_reuseaddr(true).map_err(failed)?;
    socket.bind(address).map_err(failed)?;
    let listener = socket.listen(4096).map_err(failed)?;
    listener.into_std().map_err(failed)
}

fn registered(listener: TcpListener) -> Result<(SocketAddr, tokio::net::TcpListener), Problem> {
    let failed = |e: std::io::Error| Problem::new(Code::Failed, format!("a socket cannot be used: {e}"));
    listener.set_nonblocking(true).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((address, tokio::net::TcpListener::from_std(listener).map_err(failed)?))
}

/// A socket that was handed over may be another one than the settings say.
fn refuse_exposed(addresses: &[SocketAddr], settings: &Settings) -> Result<(), Problem> {
    let beyond = addresses.iter().find(|address| !address.ip().is_loopback());
    match beyond {
        Some(address) if settings.path("tls.cert").is_none() && !settings.switch("insecure.plaintext") => {
            Err(Problem::usage(format!("{address} can be reached from other machines, and nothing would be encrypted"))
                .hint("set --tls-cert and --tls-key; listen on 127.0.0.1 behind a proxy; or say --insecure-plaintext"))
        }
        Some(_) | None => Ok(()),
    }
}

fn demand(addresses: &[SocketAddr], settings: &Settings) -> Demand {
    if settings.switch("insecure.no_tokens") {
        Demand::Never
    } else if settings.switch("tokens.required") || addresses.iter().any(|address| !address.ip().is_loopback()) {
        Demand::Always
    } else {
        Demand::Unless
    }
}

async fn warn_without_tokens(tide: &Tidegate, demand: Demand) -> Result<(), Problem> {
    if demand == Demand::Always && tide.store().tokens().await?.is_empty() {
        warn!("everybody needs a token here and there is none yet: tidegate token create NAME --scope …");
    }
    Ok(())
}

async fn open(address: &Address, settings: &Settings) -> Result<Tidegate, Problem> {
    if let Address::File(path) = address {
        check(path, Access::Create)?;
    }
    let payload = usize::try_from(settings.size("limits.payload")).unwrap_or(usize::MAX);
    let opened = Tidegate::builder().retention(settings.span("retention")).max_payload(payload).open_at(address).await;
    opened.map_err(|error| {
        // The arguments are in order; it is the store that this program cannot work on.
        let is_another = error.kind() == tidegate::StoreErrorKind::Invalid;
        let problem = Problem::from(error);
        if is_another { Problem { code: Code::Conflict, ..problem } } else { problem }
    })
}

/// Makes queues as the file says; what it does not say stays.
async fn apply_queues(store: &dyn Store, settings: &Settings) -> Result<(), Problem> {
    if settings.queues.is_empty() {
        return Ok(());
    }
    let stats = store.stats().await?;
    let file = settings.file.as_ref().map(|file| file.display().to_string()).unwrap_or_default();
    let act = || Act { actor: "configuration".to_owned(), reason: format!("as {file} says") };
    for declared in &settings.queues {
        let known =
            (stats.queues.iter()).find(|known| known.tenant == declared.tenant && known.queue == declared.queue);
        let (depth, paused) = known.map_or((None, false), |known| (known.max_depth, known.paused));
        let mut changes = Vec::new();
        changes.extend(declared.max_depth.filter(|most| *most != depth).map(QueueChange::Limit));
        let pausing = |paused| if paused { QueueChange::Pause } else { QueueChange::Resume };
        changes.extend(declared.paused.filter(|wanted| *wanted != paused).map(pausing));
        for change in changes {
            let (tenant, queue) = (declared.tenant.clone(), declared.queue.clone());
            store.pause(ChangeQueue { tenant, queue, change, act: act() }).await?;
        }
    }
    Ok(())
}

fn limits(settings: &Settings) -> Limits {
    let mut limits = Limits::default();
    limits.body = usize::try_from(settings.size("limits.body")).unwrap_or(usize::MAX);
    limits.headers = usize::try_from(settings.size("limits.headers")).unwrap_or(usize::MAX);
    limits.depth = settings.count("limits.json_depth");
    limits.batch = settings.count("limits.batch");
    limits.page = u32::try_from(settings.count("limits.page")).unwrap_or(u32::MAX);
    limits.wait = settings.span("limits.wait");
    limits.queues = settings.count("limits.queues");
    limits.new_queue_depth = settings.maybe_count("limits.new_queue_depth");
    limits.rate = rate(settings);
    limits
}

fn rate(settings: &Settings) -> Option<Rate> {
    // More than fits is more than any client can send.
    let number =
        |key: &str| settings.maybe_count(key).and_then(|n| NonZeroU32::new(u32::try_from(n).unwrap_or(u32::MAX)));
    let per_s = number("limits.requests_per_s")?;
    Some(Rate { per_s, burst: number("limits.requests_burst").unwrap_or(per_s) })
}

fn pace(settings: &Settings) -> Pace {
    Pace {
        head: settings.span("limits.head_time"),
        idle: settings.span("limits.idle"),
        body_rate: u32::try_from(settings.size("limits.body_rate")).unwrap_or(u32::MAX),
        stall: settings.span("limits.stall"),
        ..Pace::default()
    }
}

/// A connection is a descriptor, and the usual number of those is small.
fn raise_descriptors(connections: usize) {
    // The store's files, the log and the like.
    const OTHERS: u64 = 64;
    let wanted = u64::try_from(connections).unwrap_or(u64::MAX).saturating_add(OTHERS);
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    if soft >= wanted {
        return;
    }
    let most = wanted.min(hard);
    if setrlimit(Resource::RLIMIT_NOFILE, most, hard).is_err() || most < wanted {
        warn!(
            "of {connections} connections only about {} can be open at a time: ulimit -n",
            most.saturating_sub(OTHERS)
        );
    }
}
