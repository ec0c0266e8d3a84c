//! Holds a replication slot as another program would, by the wire protocol's few messages.

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::postgres::Database;

/// Streams from a slot until dropped. Nothing that arrives is looked at.
#[derive(Debug)]
pub struct Holder {
    stream: TcpStream,
}

impl Holder {
    /// Starts replication; the slot is in use when this returns.
    pub async fn start(database: &Database<'_>, slot: &str, publications: &str) -> Result<Holder> {
        let mut stream = TcpStream::connect(("127.0.0.1", database.postgres.port())).await.context("connect")?;
        let mut startup = 196_608_u32.to_be_bytes().to_vec();
        for text in ["user", "postgres", "database", &database.name, "replication", "database", ""] {
            startup.extend_from_slice(text.as_bytes());
            startup.push(0);
        }
        stream.write_all(&message(None, &startup)?).await?;
        let mut holder = Holder { stream };
        holder.read_until(b'Z').await.context("log in")?;
        let mut command = format!(
            "START_REPLICATION SLOT {slot} LOGICAL 0/0 (proto_version '1', publication_names '{publications}')"
        )
        .into_bytes();
        command.push(0);
        holder.stream.write_all(&message(Some(b'Q'), &command)?).await?;
        holder.read_until(b'W').await.context("start replication")?;
        Ok(holder)
    }

    /// Whether the server has ended the connection, as it does when the slot is taken away.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        let mut buffer = [0; 4096];
        loop {
            match self.stream.try_read(&mut buffer) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() != std::io::ErrorKind::WouldBlock,
            }
        }
    }

    async fn read_until(&mut self, wanted: u8) -> Result<()> {
        loop {
            let kind = self.stream.read_u8().await?;
            let length = self.stream.read_u32().await?;
            let mut body = vec![0; usize::try_from(length)?.saturating_sub(4)];
            self.stream.read_exact(&mut body).await?;
            if kind == b'E' {
                bail!("postgres answered {}", String::from_utf8_lossy(&body));
            }
            if kind == wanted {
                return Ok(());
            }
        }
    }
}

/// A frame: kind, unless it is the first message, then the length that counts itself.
fn message(kind: Option<u8>, body: &[u8]) -> Result<Vec<u8>> {
    let mut frame: Vec<u8> = kind.into_iter().collect();
    frame.extend_from_slice(&u32::try_from(body.len() + 4)?.to_be_bytes());
    frame.extend_from_slice(body);
    Ok(frame)
}
