//! TLS towards Postgres: what is checked of the server, what it is shown, and how it begins.

use std::path::Path;

use tempfile::TempDir;
use testkit::postgres::Version as Server;
use testkit::tls::{Authority, Issued};
use upstream::{Address, Error, Options, Stream, connect};

use crate::model::{Fixture, MARK, catch_up, copied, resume};

/// The server speaks TLS from now on, trusts the authority's clients, and obeys `rules` before its usual ones.
async fn encrypt(fixture: &Fixture, authority: &Authority, issued: &Issued, rules: &str) {
    let folder: String = fixture.client.query_one("SHOW data_directory", &[]).await.unwrap().get(0);
    let folder = Path::new(&folder);
    let files =
        [("server.crt", &issued.certificate), ("server.key", &issued.key), ("clients.crt", &authority.certificate)];
    for (name, contents) in files {
        std::fs::write(folder.join(name), contents).unwrap();
        fixture.postgres.own(&folder.join(name)).unwrap();
    }
    let usual = std::fs::read_to_string(folder.join("pg_hba.conf")).unwrap();
    std::fs::write(folder.join("pg_hba.conf"), format!("{rules}\n{usual}")).unwrap();
    fixture.run("ALTER SYSTEM SET ssl_ca_file = 'clients.crt'").await;
    fixture.run("ALTER SYSTEM SET ssl = on").await;
    fixture.run("SELECT pg_reload_conf()").await;
}

/// A file for a connection string.
fn file(folder: &TempDir, name: &str, contents: &str) -> String {
    let path = folder.path().join(name);
    std::fs::write(&path, contents).unwrap();
    path.display().to_string()
}

fn url(fixture: &Fixture, user: &str, host: &str, parameters: &str) -> String {
    format!("postgres://{user}@{host}:{}/postgres?{parameters}", fixture.postgres.port())
}

fn at(fixture: &Fixture, user: &str, host: &str, parameters: &str) -> Options {
    Options { address: url(fixture, user, host, parameters).parse().unwrap(), ..fixture.options.clone() }
}

/// Whatever kind of connection there is.
async fn assert_works(fixture: &Fixture, options: &Options) {
    let (plan, mut model) = copied(options).await;
    let mut stream = Stream::start(options, resume(&plan, plan.version)).await.unwrap();
    catch_up(&mut stream, &mut model, &fixture.client).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_checked_as_asked_for() {
    let fixture = Fixture::start(&format!(
        "{MARK} SET password_encryption = 'scram-sha-256'; CREATE ROLE scram LOGIN SUPERUSER PASSWORD 'p'"
    ))
    .await;
    let (authority, stranger) = (Authority::new().unwrap(), Authority::new().unwrap());
    let issued = authority.issue("DNS:localhost").unwrap();
    encrypt(&fixture, &authority, &issued, "hostssl all,replication scram 127.0.0.1/32 scram-sha-256").await;
    let files = TempDir::new().unwrap();
    let (ours, theirs) = (file(&files, "ours", &authority.certificate), file(&files, "theirs", &stranger.certificate));
    for (host, parameters, good) in [
        ("localhost", format!("sslmode=verify-full&sslrootcert={ours}"), true),
        ("localhost", "sslmode=require&channel_binding=require".to_owned(), true),
        ("127.0.0.1", format!("sslmode=verify-ca&sslrootcert={ours}"), true),
        ("127.0.0.1", format!("sslmode=require&sslrootcert={ours}"), true),
        ("127.0.0.1", format!("sslmode=verify-full&sslrootcert={ours}"), false),
        ("localhost", format!("sslmode=verify-ca&sslrootcert={theirs}"), false),
        ("localhost", "sslmode=verify-full".to_owned(), false),
    ] {
        let options = at(&fixture, "scram:p", host, &parameters);
        assert_eq!(connect(&options.address, "test").await.is_ok(), good, "{host} {parameters}");
        if good {
            copied(&options).await;
        }
    }
}

/// A role that has no password and is known by its certificate, which names it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_certificate_is_shown_on_every_connection() {
    let fixture = Fixture::start(&format!("{MARK} CREATE ROLE node LOGIN SUPERUSER")).await;
    let (authority, stranger) = (Authority::new().unwrap(), Authority::new().unwrap());
    let issued = authority.issue("DNS:localhost").unwrap();
    let rules = "hostssl all,replication node 127.0.0.1/32 cert\nhostnossl all,replication node 127.0.0.1/32 reject";
    encrypt(&fixture, &authority, &issued, rules).await;
    let files = TempDir::new().unwrap();
    let shown = |name: &str, issued: &Issued| {
        let certificate = file(&files, &format!("{name}.crt"), &issued.certificate);
        let key = file(&files, &format!("{name}.key"), &issued.key);
        format!("sslmode=require&sslcert={certificate}&sslkey={key}")
    };
    let ours = shown("ours", &authority.issue("DNS:client").unwrap());
    assert_works(&fixture, &at(&fixture, "node", "127.0.0.1", &ours)).await;
    let theirs = shown("theirs", &stranger.issue("DNS:client").unwrap());
    for parameters in ["sslmode=require", "sslmode=disable", &theirs] {
        let options = at(&fixture, "node", "127.0.0.1", parameters);
        assert!(connect(&options.address, "test").await.is_err(), "{parameters}");
    }
    // A key that is not the certificate's is found before the server is asked.
    let mixed = ours.replace("ours.key", "theirs.key");
    let refused = url(&fixture, "node", "127.0.0.1", &mixed).parse::<Address>().unwrap_err();
    assert!(matches!(&refused, Error::Configuration { message, .. } if message.contains("sslkey")), "{refused}");
}

/// Postgres 17 and later take TLS at once, without being asked first in the clear; earlier ones do not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_begins_at_once_where_that_is_asked_for() {
    for (server, is_understood) in [(Server::V18, true), (Server::V15, false)] {
        let fixture = Fixture::on(server, MARK).await;
        let authority = Authority::new().unwrap();
        let issued = authority.issue("DNS:localhost").unwrap();
        encrypt(&fixture, &authority, &issued, "hostnossl all,replication all 127.0.0.1/32 reject").await;
        let files = TempDir::new().unwrap();
        let roots = file(&files, "roots", &authority.certificate);
        let parameters = format!("sslnegotiation=direct&sslmode=verify-full&sslrootcert={roots}");
        let options = at(&fixture, "postgres", "localhost", &parameters);
        if is_understood {
            assert_works(&fixture, &options).await;
        } else {
            assert!(connect(&options.address, "test").await.is_err(), "it is not known there");
        }
    }
}
