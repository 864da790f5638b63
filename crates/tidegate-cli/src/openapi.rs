//! `tidegate openapi`: the document of the HTTP API, without a server.

use crate::exit::{Code, Problem};
use crate::output::Output;

const EXAMPLES: &str = "\
Examples:
  tidegate openapi > openapi.json";

/// Print the OpenAPI 3.1 document of the HTTP API, as a server has it at /openapi.json
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES)]
pub(crate) struct Args {}

pub(crate) fn run(_: &Args, output: &Output) -> Result<Code, Problem> {
    let document = tidegate_server::openapi();
    if output.json {
        output.object(&document)?;
    } else {
        output.data(&serde_json::to_string_pretty(&document).map_err(std::io::Error::from)?)?;
    }
    Ok(Code::Done)
}
