//! The gateway's side of a connection: a stream that can end with a reset, and a body that can drip.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

use super::Never;

/// A TCP stream that ends with RST instead of FIN when it was told so.
#[derive(Debug)]
pub(super) struct Wire {
    stream: TcpStream,
    reset: Arc<AtomicBool>,
}

impl Wire {
    pub(super) fn new(stream: TcpStream) -> Self {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(error = %error, "a connection keeps Nagle's delay");
        }
        Self { stream, reset: Arc::default() }
    }

    /// Set it, and the connection is reset when this stream is dropped.
    pub(super) fn reset_on_drop(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.reset)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if self.reset.load(Ordering::Relaxed)
            && let Err(error) = self.stream.set_zero_linger()
        {
            tracing::debug!(error = %error, "a scripted reset became an orderly close");
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// The bytes of an answer, at once or one by one.
#[derive(Debug)]
pub(super) struct AnswerBody {
    rest: Bytes,
    drip: Option<Drip>,
}

#[derive(Debug)]
struct Drip {
    pause: Duration,
    next: Pin<Box<Sleep>>,
}

impl AnswerBody {
    pub(super) fn new(rest: Bytes, pause: Option<Duration>) -> Self {
        let drip = pause.map(|pause| Drip { pause, next: Box::pin(tokio::time::sleep(pause)) });
        Self { rest, drip }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Never;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Never>>> {
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        let body = &mut *self;
        let frame = match &mut body.drip {
            None => std::mem::take(&mut body.rest),
            Some(drip) => {
                ready!(drip.next.as_mut().poll(cx));
                drip.next = Box::pin(tokio::time::sleep(drip.pause));
                body.rest.split_to(1)
            }
        };
        Poll::Ready(Some(Ok(Frame::data(frame))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}
