//! Stands between a store and its server, hears what each of them says, and may change what the store says.

#![expect(clippy::unwrap_used, reason = "a test that panics has said what it has to say, in its helpers as well")]

use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

use crate::engine::{Schema, database};

/// Who hears one connection.
pub(crate) trait Ear: Send + Sync + 'static {
    /// What the store is about to have said.
    fn client_speaks(&self, said: &mut [u8]);

    /// The server says something.
    fn server_speaks(&self);
}

/// Listens for a store in this schema, with an ear for each of its connections; answers the URL under which it does.
pub(crate) async fn between<E: Ear>(schema: &Schema, ear: impl Fn() -> Arc<E> + Send + 'static) -> String {
    let url = database();
    let (who, rest) = url.split_once('@').unwrap();
    let (server, path) = rest.split_once('/').unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let here = listener.local_addr().unwrap();
    let server = server.to_owned();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (client_ear, server_ear) = {
                let ear = ear();
                (Arc::clone(&ear), ear)
            };
            let server = TcpStream::connect(&server).await.unwrap();
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            tokio::spawn(async move { pass(from_client, to_server, |said| client_ear.client_speaks(said)).await });
            tokio::spawn(async move { pass(from_server, to_client, |_| server_ear.server_speaks()).await });
        }
    });
    format!("{who}@{here}/{path}?schema={}", schema.name())
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, speaks: impl Fn(&mut [u8])) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        speaks(&mut buffer[..length]);
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
