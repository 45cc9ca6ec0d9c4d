//! TCP checks: a connection, and an answer where one is expected.

use culvert_model::{HealthCheck, TcpHealthCheck};
use culvert_proto::health::{Failure, contains_in_order};
use culvert_xds::remote::Io;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{
    connect,
    session::{Kept, Report, Session},
};

/// More than this is no answer to a check.
const ANSWER_MAX: usize = 1 << 20;

/// A connection that answered as expected.
pub(super) type Connection = Box<dyn Io>;

/// One check.
pub(super) async fn check(
    session: &Session,
    check: &HealthCheck,
    tcp: &TcpHealthCheck,
    kept: &mut Kept,
) -> Report {
    let mut reused = None;
    if let Kept::Tcp(connection) = std::mem::take(kept) {
        reused = Some(connection);
    }
    if let Some(mut connection) = reused
        && exchange(&mut connection, tcp).await.is_ok()
    {
        *kept = Kept::Tcp(connection);
        return Report::success();
    }
    // What was kept may have been closed long since: only a new connection tells.
    let result = async {
        let mut connection = connect::connect(session, check, false).await?;
        exchange(&mut connection, tcp).await?;
        Ok::<_, std::io::Error>(connection)
    };
    match result.await {
        Ok(connection) => {
            // A server that speaks first does so once.
            if !tcp.receive.is_empty() && !tcp.send.is_empty() {
                *kept = Kept::Tcp(connection);
            }
            Report::success()
        }
        Err(error) => Report::failure(Failure::Network, error),
    }
}

/// Sends what is to be sent and reads until all that is expected has come.
async fn exchange(connection: &mut Connection, tcp: &TcpHealthCheck) -> std::io::Result<()> {
    if tcp.receive.is_empty() && tcp.send.is_empty() {
        return Ok(());
    }
    connection.write_all(&tcp.send).await?;
    connection.flush().await?;
    let mut answer = Vec::new();
    while !contains_in_order(&tcp.receive, &answer) {
        if answer.len() > ANSWER_MAX {
            return Err(std::io::Error::other("the answer has no end"));
        }
        if connection.read_buf(&mut answer).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}
