//! The honest client: enqueues at a rate, whatever becomes of the requests before.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{Parameters, since};

/// Longer than any request should take, and shorter than a run that hangs.
const LATE: Duration = Duration::from_secs(30);

/// Sends the requests of one turn; how long each took, in milliseconds. A time begins when its request was to be sent, also
/// where its connection was still busy with the one before: a server that stands still is not asked less often for it.
pub(super) async fn send(address: SocketAddr, turn: &str, parameters: &Parameters) -> anyhow::Result<Vec<f64>> {
    let each = Duration::from_secs(1) / parameters.rate;
    let mut connections = JoinSet::new();
    let begun = Instant::now();
    let step = u32::try_from(parameters.honest)?;
    for first in 0..step {
        let numbers = (first..parameters.requests).step_by(parameters.honest);
        let due: Vec<(u32, Instant)> = numbers.map(|number| (number, begun + each * number)).collect();
        connections.spawn(one(address, turn.to_owned(), due));
    }
    let mut times = Vec::with_capacity(parameters.requests as usize);
    while let Some(of_one) = connections.join_next().await {
        times.extend(of_one??);
    }
    Ok(times)
}

/// What goes over one connection.
async fn one(address: SocketAddr, turn: String, due: Vec<(u32, Instant)>) -> anyhow::Result<Vec<f64>> {
    let mut connection = Connection::to(address).await?;
    let mut times = Vec::with_capacity(due.len());
    for (number, due) in due {
        // A timer that comes late is this client's fault; a connection that is busy is not.
        let is_free = Instant::now() < due;
        tokio::time::sleep_until(due).await;
        let begun = if is_free { Instant::now() } else { due };
        let body = format!("{{\"kind\":\"k\",\"payload\":{{\"n\":{number}}}}}");
        let request = format!(
            "POST /v1/queues/honest/messages HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Idempotency-Key: {turn}-{number}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let answer = tokio::time::timeout(LATE, connection.ask(&request)).await;
        let answer = answer.with_context(|| format!("request {number} of {turn} was not answered in {LATE:?}"))??;
        anyhow::ensure!(answer.starts_with("HTTP/1.1 202 "), "request {number} of {turn} was answered with {answer}");
        times.push(since(begun));
    }
    Ok(times)
}

/// A connection that is kept.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Connection {
    pub(super) async fn to(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await.context("the server cannot be reached")?;
        stream.set_nodelay(true)?;
        Ok(Self::over(stream))
    }

    pub(super) fn over(stream: TcpStream) -> Self {
        Self { stream, read: Vec::new() }
    }

    /// Sends a request and reads the answer to it.
    pub(super) async fn ask(&mut self, request: &str) -> anyhow::Result<String> {
        self.stream.write_all(request.as_bytes()).await?;
        loop {
            if let Some(length) = whole(&self.read) {
                let rest = self.read.split_off(length);
                let answer = std::mem::replace(&mut self.read, rest);
                return Ok(String::from_utf8_lossy(&answer).into_owned());
            }
            let n = self.stream.read_buf(&mut self.read).await?;
            anyhow::ensure!(n > 0, "the server closed the connection after {:?}", String::from_utf8_lossy(&self.read));
        }
    }

    pub(super) fn into_stream(self) -> TcpStream {
        self.stream
    }
}

/// How long the first answer is, if all of it is there: those of Tidegate say how long their body is.
fn whole(bytes: &[u8]) -> Option<usize> {
    let head = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(&bytes[..head]).ok()?.to_ascii_lowercase();
    let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse::<usize>().ok());
    let all = head + length.unwrap_or(0);
    (bytes.len() >= all).then_some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_when_its_body_is() {
        let answer = b"HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\n{}";
        for cut in 0..answer.len() {
            assert_eq!(whole(&answer[..cut]), None, "{cut}");
        }
        assert_eq!(whole(answer), Some(answer.len()));
        assert_eq!(whole(&[&answer[..], b"HTTP"].concat()), Some(answer.len()));
        assert_eq!(whole(b"HTTP/1.1 204 No Content\r\n\r\n"), Some(27));
    }
}
