//! `choir completions`.

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::Error;
use crate::args::Arguments;
use crate::context::Context;

pub(super) fn run(shell: Shell, context: &mut Context) -> Result<u8, Error> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "choir", &mut script);
    context.io.print_bytes(&script)?;
    Ok(0)
}
