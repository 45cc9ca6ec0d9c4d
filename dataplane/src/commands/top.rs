//! `culvert top`.

use culvert::{
    cli::{Cli, Sort, Top},
    top::{self, Options, Order},
};

/// Shows until it is told to stop.
pub(super) fn run(arguments: &Top, cli: &Cli) -> anyhow::Result<()> {
    let options = Options {
        control_socket: cli.capture.control_socket.clone(),
        interval: arguments.interval,
        count: arguments.count,
        order: match arguments.sort {
            Sort::Busiest => Order::Busiest,
            Sort::Name => Order::Name,
        },
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(top::run(&options))?)
}
