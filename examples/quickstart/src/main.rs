//! Thirty lines: a message, a handler, a worker. Run it twice: the second time nobody is greeted, and the answer is there.
#![expect(clippy::print_stdout, reason = "a program for people")]

use serde::{Deserialize, Serialize};
use tidegate::{Context, Handled, Message, Tidegate};

#[derive(Serialize, Deserialize)]
struct Greet {
    name: String,
}

impl Message for Greet {
    const KIND: &'static str = "greet";
    type Answer = String;
    fn key(&self) -> String {
        format!("greet-{}", self.name)
    }
}

async fn greet(_: Context, message: Greet) -> Handled<String> {
    println!("greeting {}", message.name);
    Ok(format!("hello, {}", message.name))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let tide = Tidegate::open("tidegate.db").await?; // creates the file if it is not there
    let worker = tide.worker().handle(greet).start().await?;
    let sent = tide.enqueue(Greet { name: "Ada".into() }).await?; // on disk when this returns
    println!("{}", sent.answer(std::time::Duration::from_secs(5)).await?.completed()?);
    worker.stop().await?; // finishes what runs, takes nothing new
    tide.close().await; // leaves one whole file behind
    Ok(())
}
