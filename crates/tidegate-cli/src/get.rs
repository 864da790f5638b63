//! `tidegate get`: everything about one message, by its id or by its key.

use std::sync::Arc;

use tidegate::store::MessageView;
use tidegate::{IdempotencyKey, MessageId, QueueName, Store, StoreError, Tenant};

use crate::enqueue::key;
use crate::exit::{Code, Problem};
use crate::open::{Access, Asked, with_store};
use crate::output::Output;
use crate::view::{self, View};

const EXAMPLES: &str = "\
Examples:
  tidegate get msg_01jcz4t6q8000
  tidegate get --queue deposit --key deposit-7231
  tidegate get msg_01jcz4t6q8000 --json | jq .answer.result";

/// Show everything about a message: payload, answer, effects, history
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES)]
pub(crate) struct Args {
    /// Which message
    #[arg(required_unless_present = "key")]
    id: Option<MessageId>,
    /// Its idempotency key, instead of the id; needs --queue
    #[arg(long, requires = "queue", conflicts_with = "id", value_parser = key)]
    key: Option<IdempotencyKey>,
    /// The queue of the key
    #[arg(long, requires = "key")]
    queue: Option<QueueName>,
}

pub(crate) async fn run(args: Args, store: &Asked, output: &Output) -> Result<Code, Problem> {
    with_store(store, Access::Existing, |store: Arc<dyn Store>| async move {
        let id = match args {
            Args { id: Some(id), .. } => id,
            Args { key: Some(key), queue: Some(queue), .. } => of_key(&*store, queue, key).await?,
            Args { .. } => return Err(Problem::usage("neither an id nor --queue and --key")),
        };
        let view = one(&*store, id).await?;
        if output.json {
            output.object(&View::of(&view))?;
        } else {
            output.data(&(output.fields_text(&view::head(&view, output)) + &view::records(&view, output)))?;
        }
        Ok(Code::Done)
    })
    .await
}

async fn of_key(store: &dyn Store, queue: QueueName, key: IdempotencyKey) -> Result<MessageId, Problem> {
    let found = store.find(Tenant::default(), queue.clone(), key.clone()).await?;
    found.ok_or_else(|| {
        Problem::new(Code::NotFound, format!("no message with key {key} on queue {queue}"))
            .hint("a key belongs to its queue; after its retention it is forgotten")
    })
}

/// The message of an id.
pub(crate) async fn one(store: &dyn Store, id: MessageId) -> Result<MessageView, Problem> {
    let found = store.inspect(vec![id]).await?.pop().flatten();
    found.ok_or_else(|| StoreError::not_found(id).into())
}
