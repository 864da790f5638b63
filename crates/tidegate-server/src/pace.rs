//! How slowly a client may send and take: a connection that drips costs a timer, and then it is closed.
//!
//! A connection is waiting for the head of a request, idle between two requests, or busy with one. The first two have a
//! time each ([`Turn::overdue`]); while a request is under way its body has to come at a least rate ([`PacedBody`]), and what
//! is written has to be taken ([`Paced`], between the socket and the HTTP implementation). A handler that waits on purpose
//! is hurried by nobody.
//!
//! Thousands that came in one moment and are slow would also be cut off in one, and come back in one, and everybody else
//! would wait behind that: so each connection has its own times, a little longer than what is set ([`Pace::spread`]).

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep};

/// The times of a connection, at least: each has a little more, up to a fifth, so that those that came together do not go together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// From the first byte of a request to the end of its head; also from the connection to the first byte.
    pub head: Duration,
    /// Between two requests.
    pub idle: Duration,
    /// How long a body may come slower than `body_rate`, counted over all of it.
    pub body_grace: Duration,
    /// Bytes a second that a body has to come with beyond its grace.
    pub body_rate: u32,
    /// How long nothing of an answer may be taken.
    pub stall: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(5),
            idle: Duration::from_secs(60),
            body_grace: Duration::from_secs(5),
            body_rate: 1024,
            stall: Duration::from_secs(30),
        }
    }
}

impl Pace {
    /// The times of the next connection: longer by up to a fifth, each by another part of it.
    pub(crate) fn spread(self) -> Self {
        /// The golden ratio, of 2³²: multiples of it lie evenly, however many there are (a Weyl sequence).
        const STEP: u32 = 0x9E37_79B9;
        static PLACE: AtomicU32 = AtomicU32::new(0);
        let place = PLACE.fetch_add(STEP, Ordering::Relaxed) >> 22;
        let longer = |time: Duration| time + time / 5 * place / 1024;
        Self {
            head: longer(self.head),
            idle: longer(self.idle),
            body_grace: longer(self.body_grace),
            stall: longer(self.stall),
            ..self
        }
    }
}

/// What the connection and its requests know together.
#[derive(Debug)]
pub(crate) struct Turn {
    pace: Pace,
    phase: Mutex<Phase>,
    /// The phase is another one.
    changed: Notify,
    /// What was written was not taken in its time.
    stalled: AtomicBool,
}

/// What a client let pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Overdue {
    /// The head of a request did not come in its time.
    Head,
    /// Nothing more was asked: the usual end of a connection.
    Idle,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    /// The head of a request is awaited since then.
    Head(Instant),
    /// Nothing is awaited since then.
    Idle(Instant),
    /// So many requests are under way: one, unless the client sends ahead.
    Busy(u32),
}

impl Turn {
    pub(crate) fn new(pace: Pace) -> Arc<Self> {
        let phase = Mutex::new(Phase::Head(Instant::now()));
        Arc::new(Self { pace, phase, changed: Notify::new(), stalled: AtomicBool::new(false) })
    }

    fn phase<T>(&self, change: impl FnOnce(&mut Phase) -> T) -> T {
        change(&mut self.phase.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A request begins; it is over when what this gives is dropped.
    pub(crate) fn begin(self: &Arc<Self>) -> UnderWay {
        self.phase(|phase| {
            *phase = match *phase {
                Phase::Head(_) | Phase::Idle(_) => Phase::Busy(1),
                Phase::Busy(requests) => Phase::Busy(requests + 1),
            }
        });
        self.changed.notify_one();
        UnderWay(Arc::clone(self))
    }

    /// Bytes came.
    fn heard(&self) {
        let begun = self.phase(|phase| match phase {
            Phase::Idle(_) => {
                *phase = Phase::Head(Instant::now());
                true
            }
            Phase::Head(_) | Phase::Busy(_) => false,
        });
        if begun {
            self.changed.notify_one();
        }
    }

    /// Whether the connection was given up because the client took nothing.
    pub(crate) fn was_stalled(&self) -> bool {
        self.stalled.load(Ordering::Relaxed)
    }

    /// Returns when the client should have sent more by now.
    pub(crate) async fn overdue(&self) -> Overdue {
        loop {
            match self.deadline() {
                None => self.changed.notified().await,
                Some((deadline, overdue)) if deadline <= Instant::now() => return overdue,
                Some((deadline, _)) => tokio::select! {
                    () = self.changed.notified() => {}
                    () = tokio::time::sleep_until(deadline) => {}
                },
            }
        }
    }

    /// When the client has to have sent more.
    fn deadline(&self) -> Option<(Instant, Overdue)> {
        self.phase(|phase| match *phase {
            Phase::Head(since) => Some((since + self.pace.head, Overdue::Head)),
            Phase::Idle(since) => Some((since + self.pace.idle, Overdue::Idle)),
            Phase::Busy(_) => None,
        })
    }
}

/// A request under way.
#[derive(Debug)]
pub(crate) struct UnderWay(Arc<Turn>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.phase(|phase| {
            *phase = match *phase {
                Phase::Busy(requests) if requests > 1 => Phase::Busy(requests - 1),
                Phase::Busy(_) | Phase::Head(_) | Phase::Idle(_) => Phase::Idle(Instant::now()),
            }
        });
        self.0.changed.notify_one();
    }
}

/// A timer that is set as long as something is waited for.
#[derive(Debug, Default)]
struct Alarm(Option<Pin<Box<Sleep>>>);

impl Alarm {
    /// Whether the deadline is over; wakes the task then, if it is not.
    fn is_over(&mut self, deadline: Instant, cx: &mut Context<'_>) -> bool {
        let sleep = self.0.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if sleep.deadline() != deadline {
            sleep.as_mut().reset(deadline);
        }
        sleep.as_mut().poll(cx).is_ready()
    }
}

/// A socket that is closed on who is too slow.
#[derive(Debug)]
pub(crate) struct Paced<S> {
    inner: S,
    turn: Arc<Turn>,
    writes: Alarm,
    /// Since when nothing of what is to be written was taken.
    stalled: Option<Instant>,
}

impl<S> Paced<S> {
    pub(crate) fn new(inner: S, turn: Arc<Turn>) -> Self {
        Self { inner, turn, writes: Alarm::default(), stalled: None }
    }

    fn written<T>(&mut self, progress: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if progress.is_ready() {
            self.stalled = None;
            return progress;
        }
        let since = *self.stalled.get_or_insert_with(Instant::now);
        if self.writes.is_over(since + self.turn.pace.stall, cx) {
            self.turn.stalled.store(true, Ordering::Relaxed);
            return Poll::Ready(Err(too_slow()));
        }
        Poll::Pending
    }
}

fn too_slow() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the client was too slow")
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        let read = Pin::new(&mut this.inner).poll_read(cx, buf);
        if buf.filled().len() > before {
            this.turn.heard();
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let progress = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.written(progress, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let progress = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.written(progress, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let progress = Pin::new(&mut self.inner).poll_flush(cx);
        self.written(progress, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let progress = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.written(progress, cx)
    }
}

/// A body that comes slower than it may: the connection is closed after the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooSlow;

impl fmt::Display for TooSlow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the body came too slowly")
    }
}

impl std::error::Error for TooSlow {}

/// The body of a request, which has to come at a least rate.
#[derive(Debug)]
pub(crate) struct PacedBody {
    inner: Incoming,
    pace: Pace,
    begun: Instant,
    bytes: u64,
    alarm: Alarm,
}

impl PacedBody {
    pub(crate) fn new(inner: Incoming, pace: Pace) -> Self {
        Self { inner, pace, begun: Instant::now(), bytes: 0, alarm: Alarm::default() }
    }

    fn deadline(&self) -> Instant {
        let earned = Duration::from_millis(self.bytes.saturating_mul(1000) / u64::from(self.pace.body_rate.max(1)));
        self.begun + self.pace.body_grace + earned
    }
}

impl Body for PacedBody {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.inner).poll_frame(cx) {
            if let Some(Ok(frame)) = &frame {
                this.bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let deadline = this.deadline();
        if this.alarm.is_over(deadline, cx) { Poll::Ready(Some(Err(Box::new(TooSlow)))) } else { Poll::Pending }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// The body of an answer: when it is gone, so is the request.
#[derive(Debug)]
pub(crate) struct Answering<B> {
    inner: B,
    _under_way: UnderWay,
}

impl<B> Answering<B> {
    pub(crate) fn new(inner: B, under_way: UnderWay) -> Self {
        Self { inner, _under_way: under_way }
    }
}

impl<B: Body + Unpin> Body for Answering<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Poll::Ready(ready!(Pin::new(&mut self.inner).poll_frame(cx)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_that_come_together_are_not_cut_off_together() {
        let set = Pace::default();
        let mut heads: Vec<Duration> = (0..1000).map(|_| set.spread().head).collect();
        heads.sort_unstable();
        assert!(set.head <= heads[0] && heads[999] < set.head * 6 / 5, "{:?} {:?}", heads[0], heads[999]);
        // Of a second, each tenth has its share, whatever else takes connections in this process meanwhile.
        for tenth in 0..10 {
            let from = set.head + Duration::from_millis(100) * tenth;
            let of_it = heads.iter().filter(|head| (from..from + Duration::from_millis(100)).contains(head)).count();
            assert!((50..=150).contains(&of_it), "{of_it} of 1000 from {from:?} on");
        }
    }
}
