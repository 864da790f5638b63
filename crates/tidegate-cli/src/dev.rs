//! `tidegate dev`: a server on this machine to try things with, its token, and a command that works as it stands.

use serde::Serialize;
use tidegate::store::ChangeToken;
use tidegate::token::{Action, Glob, Scope, Secret, TokenChange};
use tidegate::{StoreErrorKind, SystemRandom, Tidegate, TokenName};

use crate::config::{Named, gather};
use crate::exit::{Code, Problem};
use crate::log::{self, LogArgs};
use crate::open::act;
use crate::output::Output;
use crate::serve::{Running, Signals};

const EXAMPLES: &str = "\
Examples:
  tidegate dev
  tidegate dev --store try.db --listen 127.0.0.1:0";

/// Start a server to develop against: loopback, a token, and a sample request to paste
#[derive(Debug, clap::Args)]
#[command(
    before_help = EXAMPLES,
    after_help = "Without --store the store is a file in a temporary directory, and gone when this ends."
)]
pub(crate) struct Args {
    /// Where clients connect; port 0 is any free one
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:7401")]
    listen: std::net::SocketAddr,
    #[command(flatten)]
    log: LogArgs,
}

#[derive(Serialize)]
struct Started<'a> {
    url: &'a str,
    token: &'a str,
    store: &'a str,
    docs: String,
}

pub(crate) async fn run(args: Args, store: Option<&str>, output: &Output) -> Result<Code, Problem> {
    if !args.listen.ip().is_loopback() {
        return Err(Problem::usage(format!("{} can be reached from other machines", args.listen))
            .hint("tidegate serve is for that; dev listens on loopback only"));
    }
    let scratch = tempfile::Builder::new().prefix("tidegate-dev-").tempdir()?;
    let temporary = scratch.path().join("tidegate.db").display().to_string();
    let flags = [("listen", args.listen.to_string(), "--listen"), ("tokens.required", "true".to_owned(), "dev")];
    let mut flags = flags.map(|(key, value, flag)| (key, value, flag.to_owned())).to_vec();
    flags.extend(args.log.flags());
    let settings = gather(&Named::default(), Some(store.unwrap_or(&temporary)), flags);
    if let Some(problem) = settings.problem() {
        return Err(problem);
    }
    log::begin(&settings, output)?;
    let signals = Signals::listen()?;
    let running = Running::start(&settings, Vec::new()).await?;
    let token = token(&running.tide).await?;
    let url = running.addresses.first().map(|address| running.url(*address)).unwrap_or_default();
    tell(&url, token.reveal(), &running.store, store.is_none(), output)?;
    let ended = running.until_told(signals).await;
    drop(scratch);
    ended
}

/// A token that may do everything. One of an earlier run on this store ends.
async fn token(tide: &Tidegate) -> Result<Secret, Problem> {
    let secret = Secret::new(&SystemRandom);
    let name = TokenName::new("dev")?;
    let change = |change: TokenChange| ChangeToken { name: name.clone(), change, act: act(Some("tidegate dev")) };
    match tide.store().change_token(change(TokenChange::Revoke)).await {
        Ok(_) => {}
        Err(error) if error.kind() == StoreErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    let scopes = Action::ALL.iter().map(|action| Scope { action: *action, queues: Glob::all() }).collect();
    let add = TokenChange::Add { hash: secret.hash(), scopes, tenant: Glob::all(), expires_at: None };
    tide.store().change_token(change(add)).await?;
    Ok(secret)
}

fn tell(url: &str, token: &str, store: &str, is_temporary: bool, output: &Output) -> Result<(), Problem> {
    if output.json {
        return output.object(&Started { url, token, store, docs: format!("{url}/docs") });
    }
    let gone = if is_temporary { "  (gone when this ends)" } else { "" };
    output.data(&format!(
        "server  {url}\ndocs    {url}/docs\nstore   {store}{gone}\ntoken   {token}\n\n\
        curl -s {url}/v1/queues/greet/messages \\\n  \
        -H 'Authorization: Bearer {token}' \\\n  \
        -H 'Content-Type: application/json' \\\n  \
        -H 'Idempotency-Key: \"greet-ada\"' \\\n  \
        -d '{{\"kind\":\"greet\",\"payload\":{{\"name\":\"Ada\"}}}}'\n"
    ))?;
    output.say("Ctrl-C ends it");
    Ok(())
}
