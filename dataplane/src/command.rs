//! What the binary does beside serving: `zero-cache backup list|verify|restore|delete` looks at a backup, brings it back or removes
//! it; `zero-cache decommission` removes what a shard has in the databases; `zero-cache health` asks a node whether it is ready;
//! `zero-cache permissions` deploys permissions.

mod permissions;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use replica::Identity;

use crate::config::{self, BackupSettings};
use crate::decommission::{self, Wish};

const BACKUP_USAGE: &str = "\
usage: zero-cache backup list            what is in the backup and what it restores to
       zero-cache backup verify          reads and checks every file that a restoration would use
       zero-cache backup restore FILE    restores the replica of ZERO_APP_ID to FILE, which must not exist
       zero-cache backup delete --url=s3://bucket/path/ --unless-written-after=SECONDS [--report=FILE]
                                         deletes everything below the path, which must end with a slash, unless
                                         something there was written after that time (seconds since 1970);
                                         what came of it is written to FILE as well

The backup is that of ZERO_LITESTREAM_BACKUP_URL, or the one of --url (with ZERO_LITESTREAM_ENDPOINT,
ZERO_LITESTREAM_REGION, AWS_*).";

const HEALTH_USAGE: &str = "\
usage: zero-cache health [--url=http://127.0.0.1:4848/]

Ends with 0 if the node answers 200 there, for health checks of containers without a shell. A replication-manager's port is 4849;
/livez says whether the process is alive, / whether it is ready.";

/// Both for connecting and for each read or write.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(5);

enum Command {
    List,
    Verify,
    Restore(PathBuf),
    Delete {
        unless_written_after: SystemTime,
        /// Kubernetes reads a container's last words from a file of its choice.
        report: Option<PathBuf>,
    },
}

/// Carries `arguments` out (those after `backup`) and prints what is found. `false`: the backup is not what it should be.
pub async fn backup(arguments: &[String]) -> Result<bool> {
    if is_help(arguments) {
        println!("{BACKUP_USAGE}");
        return Ok(true);
    }
    let Some((command, url)) = parse(arguments)? else { bail!("{BACKUP_USAGE}") };
    let BackupSettings { app, backup: settings } = config::backup_from_process()?;
    let url = url.as_deref().or(settings.url.as_deref()).context("ZERO_LITESTREAM_BACKUP_URL is not set")?;
    let options = crate::options::backup(&settings, url);
    let target = || backup::Target::open(&options);
    match command {
        Command::List => {
            println!("{}", backup::list(&target().await?).await?);
            Ok(true)
        }
        Command::Verify => {
            let report = backup::verify(&target().await?).await?;
            println!("{report}");
            Ok(report.is_good())
        }
        Command::Restore(file) => {
            ensure!(!file.exists(), "{} exists already", file.display());
            let identity = Identity { app: app.id, shard: app.shard_num };
            let restored = backup::restore(&target().await?, &file, &identity, None, |_, _| {}).await?;
            println!("restored version {} to {}", restored.version, file.display());
            Ok(true)
        }
        Command::Delete { unless_written_after, report } => {
            let deleted = backup::delete(&options, unless_written_after).await;
            let line = match &deleted {
                Ok(count) => format!("deleted {count} objects"),
                Err(error) => error.to_string(),
            };
            if let Some(report) = report {
                std::fs::write(&report, &line).with_context(|| format!("write {}", report.display()))?;
            }
            deleted?;
            println!("{line}");
            Ok(true)
        }
    }
}

/// Carries `arguments` out (those after `decommission`).
pub async fn decommission(arguments: &[String]) -> Result<bool> {
    if is_help(arguments) {
        println!("{}", decommission::USAGE);
        return Ok(true);
    }
    let wish = wish(arguments)?;
    decommission::run(&wish, &config::databases_from_process()?).await?;
    Ok(true)
}

fn wish(arguments: &[String]) -> Result<Wish> {
    let (words, mut flags) = split(arguments)?;
    let confirmed = flags.remove("confirm");
    let with_permissions = match flags.remove("permissions").as_deref() {
        None => false,
        Some("delete") => true,
        Some(other) => bail!("--permissions={other} means nothing: --permissions=delete removes them"),
    };
    ensure!(words.is_empty() && flags.is_empty(), "{}", decommission::USAGE);
    Ok(Wish { confirmed, with_permissions })
}

/// `None` if that is no command.
fn parse(arguments: &[String]) -> Result<Option<(Command, Option<String>)>> {
    let (words, mut flags) = split(arguments)?;
    let command = match words.as_slice() {
        ["list"] => Command::List,
        ["verify"] => Command::Verify,
        ["restore", file] => Command::Restore(PathBuf::from(file)),
        ["delete"] => {
            ensure!(flags.contains_key("url"), "--url=s3://bucket/path/ must say what to delete");
            let limit = flags.remove("unless-written-after").context("--unless-written-after=SECONDS is missing")?;
            let seconds: u64 =
                limit.parse().ok().context("--unless-written-after must be a number of seconds since 1970")?;
            let limit = UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
            Command::Delete {
                unless_written_after: limit.context("--unless-written-after is too far away")?,
                report: flags.remove("report").map(PathBuf::from),
            }
        }
        _ => return Ok(None),
    };
    let url = flags.remove("url");
    ensure!(
        flags.is_empty(),
        "unknown: {}",
        flags.into_keys().map(|name| format!("--{name}")).collect::<Vec<_>>().join(", ")
    );
    Ok(Some((command, url)))
}

/// Words, and the values of flags given as `--name=value` or `--name value`.
fn split(arguments: &[String]) -> Result<(Vec<&str>, BTreeMap<String, String>)> {
    let (mut words, mut flags) = (Vec::new(), BTreeMap::new());
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let Some(flag) = argument.strip_prefix("--") else {
            words.push(argument.as_str());
            continue;
        };
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, value.to_owned()),
            None => (flag, arguments.next().with_context(|| format!("--{flag} needs a value"))?.clone()),
        };
        ensure!(flags.insert(name.to_owned(), value).is_none(), "--{name} is given twice");
    }
    Ok((words, flags))
}

fn is_help(arguments: &[String]) -> bool {
    matches!(arguments, [only] if matches!(only.as_str(), "--help" | "-h" | "help"))
}

/// Whether the node at the URL of `arguments` (those after `health`) answers 200.
pub fn health(arguments: &[String]) -> Result<bool> {
    if is_help(arguments) {
        println!("{HEALTH_USAGE}");
        return Ok(true);
    }
    let (words, mut flags) = split(arguments)?;
    let url = flags.remove("url");
    ensure!(words.is_empty() && flags.is_empty(), "{HEALTH_USAGE}");
    let url =
        url.unwrap_or_else(|| format!("http://127.0.0.1:{}/", std::env::var("ZERO_PORT").as_deref().unwrap_or("4848")));
    let status = ask(&url).with_context(|| format!("ask {url}"))?;
    println!("{url} answers {status}");
    Ok(status == 200)
}

pub use permissions::run as permissions;

/// The status of a GET.
fn ask(url: &str) -> Result<u16> {
    let url = url::Url::parse(url)?;
    ensure!(url.scheme() == "http", "only http:// is asked");
    let host = url.host_str().context("the URL names no host")?;
    let port = url.port().unwrap_or(80);
    let addresses = (host.trim_matches(['[', ']']), port).to_socket_addrs()?;
    let mut failure = None;
    for address in addresses {
        match TcpStream::connect_timeout(&address, HEALTH_TIMEOUT) {
            Ok(stream) => return exchange(stream, host, url.path()),
            Err(error) => failure = Some(error),
        }
    }
    Err(failure.map_or_else(|| anyhow::anyhow!("the host has no address"), Into::into))
}

fn exchange(mut stream: TcpStream, host: &str, path: &str) -> Result<u16> {
    stream.set_read_timeout(Some(HEALTH_TIMEOUT))?;
    stream.set_write_timeout(Some(HEALTH_TIMEOUT))?;
    // In one piece: who answers before it has read the rest resets the connection.
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut head = Vec::new();
    // The first line is all that counts.
    BufReader::new(stream.take(256)).read_until(b'\n', &mut head)?;
    let line = String::from_utf8_lossy(&head);
    let status = line.strip_prefix("HTTP/1.").and_then(|rest| rest.split(' ').nth(1)?.parse().ok());
    status.context("the answer is not HTTP")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn commands_about_a_backup() {
        let url = |text: &str| parse(&words(text)).unwrap().unwrap().1;
        assert_eq!(url("list"), None);
        assert_eq!(url("verify --url=s3://b/v1/").as_deref(), Some("s3://b/v1/"));
        assert_eq!(url("restore --url s3://b/v1/ /tmp/x").as_deref(), Some("s3://b/v1/"));
        let Some((Command::Delete { unless_written_after, report }, Some(url))) =
            parse(&words("delete --url=s3://b/v1/ --unless-written-after=1700000000 --report=/tmp/x")).unwrap()
        else {
            panic!("not understood")
        };
        assert_eq!(
            (unless_written_after, report, url.as_str()),
            (UNIX_EPOCH + Duration::from_secs(1_700_000_000), Some(PathBuf::from("/tmp/x")), "s3://b/v1/")
        );
        for none in ["", "purge", "list twice", "restore"] {
            assert!(parse(&words(none)).unwrap().is_none(), "{none}");
        }
        for (bad, why) in [
            ("delete", "--url"),
            ("delete --url=s3://b/v1/", "--unless-written-after"),
            ("delete --unless-written-after=5", "--url"),
            ("delete --url=s3://b/v1/ --unless-written-after=yesterday", "number"),
            ("delete --url=s3://b/v1/ --unless-written-after=18446744073709551615", "too far"),
            ("delete --url=s3://b/v1/ --unless-written-after=5 --force=1", "--force"),
            ("list --url", "needs a value"),
            ("list --url=a --url=b", "twice"),
        ] {
            let error = parse(&words(bad)).err().unwrap().to_string();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }

    #[test]
    fn what_goes_is_named() {
        let wished = |confirmed: Option<&str>, with_permissions| Wish {
            confirmed: confirmed.map(str::to_owned),
            with_permissions,
        };
        for (text, expected) in [
            ("", wished(None, false)),
            ("--confirm=zero_0", wished(Some("zero_0"), false)),
            ("--permissions=delete --confirm zero_0", wished(Some("zero_0"), true)),
        ] {
            assert_eq!(wish(&words(text)).unwrap(), expected, "{text}");
        }
        for bad in ["zero_0", "--yes=1", "--confirm", "--permissions=all"] {
            assert!(wish(&words(bad)).is_err(), "{bad}");
        }
    }

    /// A server that answers one connection with `answer`.
    fn answering(answer: &'static str) -> String {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = BufReader::new(stream.try_clone().unwrap()).lines();
            assert!(request.any(|line| line.unwrap().is_empty()), "a request ends with an empty line");
            stream.write_all(answer.as_bytes()).unwrap();
        });
        format!("--url=http://127.0.0.1:{port}/")
    }

    #[test]
    fn health_is_what_the_node_answers() {
        assert!(health(&[answering("HTTP/1.1 200 OK\r\n\r\nOK")]).unwrap());
        assert!(!health(&[answering("HTTP/1.1 503 Service Unavailable\r\n\r\nstarting")]).unwrap());
        assert!(health(&[answering("SSH-2.0-OpenSSH")]).is_err());
        assert!(health(&words("--url=https://127.0.0.1/")).is_err());
        assert!(health(&words("--url=nonsense")).is_err());
        assert!(health(&words("now")).is_err());
    }
}
