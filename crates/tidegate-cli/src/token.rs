//! `tidegate token`: who may do what over the network. A token is printed once, when it is made; the store keeps its digest.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tidegate::store::ChangeToken;
use tidegate::token::{Glob, Scope, Secret, TokenChange, TokenRecord};
use tidegate::{Clock, Store, SystemClock, SystemRandom, Timestamp, TokenName};

use crate::exit::{Code, Problem};
use crate::input::duration;
use crate::open::{Access, Asked, act, with_store};
use crate::output::Output;
use crate::redrive::reason;

const EXAMPLES: &str = "\
Examples:
  tidegate token create checkout --scope produce:payments.* --expires 90d
  tidegate token create worker --scope work:payments.* --scope read
  tidegate token list
  tidegate token rotate checkout --overlap 1h
  tidegate token revoke checkout";

const ACTIONS: &str = "\
A scope is an action and a pattern of queues, such as produce:payments.*; without the pattern it is for all queues.
Actions: produce (enqueue, see the answers), work (claim and settle), read (everything but payloads), reveal (payloads too),
operate (dead letters, parked messages, queues), admin (tokens, sweeps).";

/// Tokens of clients that come over the network: create, list, rotate, revoke
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES, after_help = ACTIONS, arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Create(CreateArgs),
    List(ListArgs),
    Rotate(RotateArgs),
    Revoke(RevokeArgs),
}

/// Make a token and print it, this once
#[derive(Debug, clap::Args)]
#[command(before_help = "Examples:\n  tidegate token create checkout --scope produce:payments.*", after_help = ACTIONS)]
struct CreateArgs {
    /// Its name: who acts, in the audit
    name: TokenName,
    /// What it allows, such as produce:payments.* or read; may be given several times
    #[arg(long = "scope", value_name = "ACTION[:QUEUES]", required = true)]
    scopes: Vec<Scope>,
    /// For which tenants: a name, or a pattern such as acme-*; without it for the tenant that needs no name
    #[arg(long, value_name = "TENANTS", default_value = "")]
    tenant: Glob,
    /// Ends by itself after so long, such as 90d
    #[arg(long, value_name = "TIME", value_parser = duration)]
    expires: Option<Duration>,
    /// Why; kept with who and when
    #[arg(long, value_parser = reason)]
    reason: Option<String>,
}

/// List tokens: name, what they allow, whether they live; never the token itself
#[derive(Debug, clap::Args)]
#[command(
    before_help = "Examples:\n  tidegate token list\n  tidegate token list --all --json",
    after_help = "Columns when piped, separated by tabs:\n  name, scopes, tenants, state, made, expires, first digits of its SHA-256"
)]
struct ListArgs {
    /// Also those that expired or were revoked
    #[arg(long)]
    all: bool,
}

/// Make a second token of the same name and scopes, and let the first one end after a while
#[derive(Debug, clap::Args)]
#[command(before_help = "Examples:\n  tidegate token rotate checkout --overlap 1h")]
struct RotateArgs {
    /// Which
    name: TokenName,
    /// How long the old one goes on
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "24h")]
    overlap: Duration,
    /// The new one ends by itself after so long
    #[arg(long, value_name = "TIME", value_parser = duration)]
    expires: Option<Duration>,
    /// Why; kept with who and when
    #[arg(long, value_parser = reason)]
    reason: Option<String>,
}

/// End all tokens of a name; servers notice within seconds
#[derive(Debug, clap::Args)]
#[command(before_help = "Examples:\n  tidegate token revoke checkout --reason \"found in a log\"")]
struct RevokeArgs {
    /// Which
    name: TokenName,
    /// Why; kept with who and when
    #[arg(long, value_parser = reason)]
    reason: Option<String>,
}

pub(crate) async fn run(args: Args, store: &Asked, output: &Output) -> Result<Code, Problem> {
    match args.command {
        Command::Create(args) => {
            let secret = Secret::new(&SystemRandom);
            let change = TokenChange::Add {
                hash: secret.hash(),
                scopes: args.scopes,
                tenant: args.tenant,
                expires_at: args.expires.map(from_now),
            };
            make(secret, args.name, change, args.reason, Access::Create, store, output).await
        }
        Command::Rotate(RotateArgs { name, overlap, expires, reason }) => {
            let secret = Secret::new(&SystemRandom);
            let expires_at = expires.map(from_now);
            let change = TokenChange::Rotate { hash: secret.hash(), overlap, expires_at };
            make(secret, name, change, reason, Access::Existing, store, output).await
        }
        Command::Revoke(RevokeArgs { name, reason }) => {
            with_store(store, Access::Existing, |store: Arc<dyn Store>| async move {
                let request =
                    ChangeToken { name: name.clone(), change: TokenChange::Revoke, act: act(reason.as_deref()) };
                let kept = store.change_token(request).await?;
                if output.json {
                    kept.iter().try_for_each(|record| output.object(record))?;
                } else {
                    output.data(&format!("{name}\trevoked"))?;
                }
                Ok(Code::Done)
            })
            .await
        }
        Command::List(ListArgs { all }) => {
            with_store(store, Access::Existing, |store: Arc<dyn Store>| async move {
                list(&store.tokens().await?, all, output)
            })
            .await
        }
    }
}

fn from_now(after: Duration) -> Timestamp {
    SystemClock::new().now().after(after)
}

#[derive(Serialize)]
struct Made<'a> {
    token: &'a str,
    #[serde(flatten)]
    record: &'a TokenRecord,
}

async fn make(
    secret: Secret,
    name: TokenName,
    change: TokenChange,
    reason: Option<String>,
    access: Access,
    store: &Asked,
    output: &Output,
) -> Result<Code, Problem> {
    with_store(store, access, |store: Arc<dyn Store>| async move {
        let request = ChangeToken { name: name.clone(), change, act: act(reason.as_deref()) };
        let kept = store.change_token(request).await?;
        let made = kept.iter().find(|record| record.hash == secret.hash());
        let made =
            made.ok_or_else(|| Problem::new(Code::Failed, format!("the token {name} was made and is not there")))?;
        if output.json {
            output.object(&Made { token: secret.reveal(), record: made })?;
        } else {
            output.data(secret.reveal())?;
            output.say("this is the only time it is shown; what the store keeps cannot be turned back into it");
        }
        for old in kept.iter().filter(|record| record.hash != made.hash && record.is_live(made.created_at)) {
            output.say(format!("the one before ends at {}", output.maybe_time(old.expires_at)));
        }
        output.next("send it as: Authorization: Bearer tg_…");
        Ok(Code::Done)
    })
    .await
}

fn list(records: &[TokenRecord], all: bool, output: &Output) -> Result<Code, Problem> {
    let now = SystemClock::new().now();
    let shown = records.iter().filter(|record| all || record.is_live(now));
    if output.json {
        shown.into_iter().try_for_each(|record| output.object(record))?;
        return Ok(Code::Done);
    }
    let row = |record: &TokenRecord| {
        let scopes: Vec<String> = record.scopes.iter().map(ToString::to_string).collect();
        let tenant = if record.tenant.as_str().is_empty() { output.nothing() } else { record.tenant.to_string() };
        let state = if record.revoked_at.is_some() {
            "revoked"
        } else if record.is_live(now) {
            "live"
        } else {
            "expired"
        };
        vec![
            record.name.to_string(),
            scopes.join(" "),
            tenant,
            state.to_owned(),
            output.time(record.created_at),
            output.maybe_time(record.expires_at),
            record.hash.to_string().chars().take(8).collect(),
        ]
    };
    let header = ["name", "scopes", "tenants", "state", "made", "expires", "sha-256"];
    output.rows(&header, &shown.map(row).collect::<Vec<_>>())?;
    Ok(Code::Done)
}
