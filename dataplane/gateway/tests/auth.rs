use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use gateway::{Options, Secret};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use views::api::{ClientMessage, ConnectionContext};

use crate::support::api::{Api, ok};
use crate::support::client::{Client, subprotocol};
use port::Inside;

use crate::support::{Harness, options, pages, params};

const SECRET: &str = "a secret of some length, for HS256";
const FAR: i64 = 4_000_000_000;

fn jwt_options() -> Options {
    let mut options = options();
    options.auth.secret = Some(Secret(SECRET.to_owned()));
    options
}

fn token(claims: Value) -> String {
    encode(&Header::default(), &claims, &EncodingKey::from_secret(SECRET.as_bytes())).unwrap()
}

async fn connect(harness: &Harness, client: &str, user: Option<&str>, token: &str) -> Client {
    let user = user.map_or_else(String::new, |user| format!("&userID={user}"));
    let path = format!("{}{user}", params(client));
    Client::connect_with(harness.address, &path, &subprotocol(&json!({"authToken": token})), &[]).await.unwrap()
}

/// Expects to be turned away with `kind`.
async fn refused(mut client: Client, kind: &str) {
    let error = client.error().await;
    assert_eq!(error["kind"], kind, "{error}");
    let (code, reason) = client.closed().await.expect("a status");
    assert_eq!(code, 3000);
    assert!(error["message"].as_str().unwrap().starts_with(reason.trim_end_matches("...")), "{reason}");
}

#[tokio::test]
async fn a_valid_token_is_accepted_and_kept() {
    let mut harness = Harness::start(jwt_options()).await;
    let token = token(json!({"sub": "u", "exp": FAR, "role": "admin"}));
    let mut client = connect(&harness, "c", Some("u"), &token).await;
    client.expect("connected").await;
    let connect = harness.connect().await;
    assert_eq!(connect.context.token.as_deref(), Some(token.as_str()));
    assert_eq!(connect.context.claims.as_ref().unwrap()["role"], "admin");
    // No expiry is no fault, and no token is no user's.
    let token = self::token(json!({"sub": "u"}));
    self::connect(&harness, "d", Some("u"), &token).await.expect("connected").await;
    let mut anonymous = Client::connect(harness.address, &params("e")).await;
    anonymous.expect("connected").await;
}

#[tokio::test]
async fn nobody_is_somebody_without_a_token_where_tokens_are_verified() {
    let mut harness = Harness::start(jwt_options()).await;
    let mut live = connect(&harness, "c", Some("u"), &token(json!({"sub": "u"}))).await;
    live.expect("connected").await;
    harness.connect().await;
    let path = format!("{}&userID=u", params("c"));
    refused(Client::connect(harness.address, &path).await, "Unauthorized").await;
    refused(connect(&harness, "c", Some("u"), "").await, "Unauthorized").await;
    live.send(r#"["ping",{}]"#).await;
    live.expect("pong").await;
    // Where nobody verifies them here, the API server says whose the connection is.
    let mut harness = Harness::start(opaque_options()).await;
    Client::connect(harness.address, &path).await.expect("connected").await;
    assert_eq!(harness.connect().await.context.user_id.as_deref(), Some("u"));
}

#[tokio::test]
async fn a_token_that_expires_ends_its_connection_unless_a_new_one_came() {
    let mut harness = Harness::start(jwt_options()).await;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
    let good_for = |seconds: i64| token(json!({"sub": "u", "iat": now + seconds, "exp": now + seconds}));
    let mut kept = connect(&harness, "kept", Some("u"), &good_for(2)).await;
    kept.expect("connected").await;
    let mut ended = connect(&harness, "ended", Some("u"), &good_for(2)).await;
    ended.expect("connected").await;
    kept.send(update(&good_for(3600))).await;
    let error = ended.error().await;
    assert_eq!((&error["kind"], &error["message"]), (&json!("AuthInvalidated"), &json!("the token has expired")));
    assert_eq!(ended.closed().await, None);
    assert!(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64 >= now + 2);
    kept.send(r#"["ping",{}]"#).await;
    kept.expect("pong").await;
    connect(&harness, "far", Some("u"), &good_for(FAR)).await.expect("connected").await;
    harness.stop();
}

#[tokio::test]
async fn an_invalid_token_is_refused_and_displaces_nobody() {
    let mut options = jwt_options();
    options.auth.issuer = Some("me".to_owned());
    options.auth.audience = Some("you".to_owned());
    let mut harness = Harness::start(options).await;
    let good = json!({"sub": "u", "iss": "me", "aud": ["x", "you"], "exp": FAR});
    let with = |name: &str, value: Value| {
        let mut claims = good.clone();
        claims[name] = value;
        token(claims)
    };
    let mut live = connect(&harness, "c", Some("u"), &token(good.clone())).await;
    live.expect("connected").await;
    harness.connect().await;
    let unsigned = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJ1In0.";
    let other_key = encode(&Header::default(), &good, &EncodingKey::from_secret(b"another secret")).unwrap();
    let other_family = token(good.clone()).replacen("eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiJ9", "eyJhbGciOiJSUzI1NiJ9", 1);
    for bad in [
        with("exp", json!(1)),
        with("nbf", json!(FAR)),
        with("sub", json!("v")),
        with("sub", Value::Null),
        with("iss", json!("them")),
        with("aud", json!("them")),
        with("aud", Value::Null),
        unsigned.to_owned(),
        other_key,
        other_family,
        "garbage".to_owned(),
        "a.b.c".to_owned(),
    ] {
        refused(connect(&harness, "c", Some("u"), &bad).await, "AuthInvalidated").await;
    }
    refused(connect(&harness, "c", None, &token(good.clone())).await, "Unauthorized").await;
    live.send(r#"["ping",{}]"#).await;
    live.expect("pong").await;
}

fn opaque_options() -> Options {
    let mut options = options();
    options.mutate.urls = vec!["http://127.0.0.1:1/m".to_owned()];
    options.query.urls = vec!["http://127.0.0.1:1/q".to_owned()];
    options
}

#[tokio::test]
async fn opaque_tokens_need_somebody_to_judge_them() {
    let mut options = opaque_options();
    options.query.urls.clear();
    let harness = Harness::start(options).await;
    let mut client = connect(&harness, "c", Some("u"), "opaque").await;
    assert_eq!(client.error().await["kind"], "Internal");
    assert_eq!(client.closed().await, None);

    let mut harness = Harness::start(opaque_options()).await;
    connect(&harness, "c", Some("u"), "opaque").await.expect("connected").await;
    assert_eq!(harness.connect().await.context.token.as_deref(), Some("opaque"));
    refused(connect(&harness, "d", None, "opaque").await, "Unauthorized").await;
}

async fn updated(harness: &mut Harness) -> std::sync::Arc<ConnectionContext> {
    match harness.message().await.1 {
        ClientMessage::UpdateAuth(context) => context,
        other => panic!("expected UpdateAuth, got {other:?}"),
    }
}

fn update(token: &str) -> String {
    json!(["updateAuth", {"auth": token}]).to_string()
}

#[tokio::test]
async fn an_opaque_token_may_change_but_not_go() {
    let mut harness = Harness::start(opaque_options()).await;
    let mut client = connect(&harness, "c", Some("u"), "one").await;
    client.expect("connected").await;
    harness.connect().await;
    client.send(r#"["initConnection",{"desiredQueriesPatch":[],"userQueryURL":"http://q"}]"#).await;
    harness.message().await;
    client.send(update("one")).await;
    client.send(update("two")).await;
    let context = updated(&mut harness).await;
    assert_eq!(context.token.as_deref(), Some("two"), "the same token again changes nothing");
    assert_eq!(context.user_query_url.as_deref(), Some("http://q"));
    client.send(update("")).await;
    assert_eq!(client.error().await["kind"], "Unauthorized");
    assert_eq!(client.closed().await, None);
}

#[tokio::test]
async fn a_newer_jwt_replaces_an_older_one() {
    let mut harness = Harness::start(jwt_options()).await;
    let issued = |iat: i64| token(json!({"sub": "u", "iat": iat}));
    let mut client = connect(&harness, "c", Some("u"), &issued(100)).await;
    client.expect("connected").await;
    harness.connect().await;
    client.send(r#"["initConnection",{"desiredQueriesPatch":[]}]"#).await;
    harness.message().await;
    for iat in [50, 100, 200] {
        client.send(update(&issued(iat))).await;
    }
    let context = updated(&mut harness).await;
    assert_eq!(context.claims.as_ref().unwrap()["iat"], 200, "older and equal ones change nothing");
    client.send(update(&token(json!({"sub": "v", "iat": 300})))).await;
    assert_eq!(client.error().await["kind"], "AuthInvalidated");
    client.closed().await;

    let mut client = connect(&harness, "d", Some("u"), &issued(100)).await;
    client.expect("connected").await;
    client.send(update(&token(json!({"sub": "u"})))).await;
    assert_eq!(client.error().await["kind"], "Unauthorized", "the time of issue is gone");
}

fn jwk(kid: &str, secret: &str) -> Value {
    use base64::Engine;
    let k = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(secret);
    json!({"kty": "oct", "alg": "HS256", "kid": kid, "k": k})
}

fn signed_by(kid: &str, secret: &str) -> String {
    let header = Header { kid: Some(kid.to_owned()), ..Header::new(Algorithm::HS256) };
    encode(&header, &json!({"sub": "u"}), &EncodingKey::from_secret(secret.as_bytes())).unwrap()
}

#[tokio::test]
async fn keys_are_fetched_once() {
    let mut api =
        Api::start(|_| ok(json!({"keys": [{"kty": "mystery"}, jwk("one", "secret one"), jwk("two", "secret two")]})))
            .await;
    let mut options = options();
    options.auth.jwks_url = Some(api.url("/keys"));
    let harness = Harness::start(options).await;
    for (client, kid, secret) in [("a", "one", "secret one"), ("b", "two", "secret two")] {
        connect(&harness, client, Some("u"), &signed_by(kid, secret)).await.expect("connected").await;
    }
    refused(connect(&harness, "c", Some("u"), &signed_by("one", "secret two")).await, "AuthInvalidated").await;
    refused(connect(&harness, "c", Some("u"), &signed_by("three", "secret one")).await, "AuthInvalidated").await;
    assert_eq!(api.pending(), 1, "an unknown key id does not make us ask again at once");
}

#[tokio::test]
async fn a_key_server_that_hangs_keeps_nobody_out_whose_key_is_known() {
    let mut api = Api::start(|_| ok(json!({"keys": [jwk("one", "secret one")]}))).await;
    let mut options = options();
    options.auth.jwks_url = Some(api.url("/keys"));
    options.limits.keys_timeout = Duration::from_millis(500);
    let harness = Harness::start(options).await;
    api.request().await;
    connect(&harness, "a", Some("u"), &signed_by("one", "secret one")).await.expect("connected").await;
    api.hold();
    // Tokens that name keys nobody has heard of make it ask, a few times at most, and wait for nobody but themselves.
    let mut strangers = Vec::new();
    for n in 0..20 {
        strangers.push(connect(&harness, &format!("s{n}"), Some("u"), &signed_by(&format!("k{n}"), "secret")).await);
    }
    for n in 0..20 {
        connect(&harness, &format!("c{n}"), Some("u"), &signed_by("one", "secret one")).await.expect("connected").await;
    }
    for mut stranger in strangers {
        let kind = stranger.error().await["kind"].clone();
        assert!(kind == "ServerOverloaded" || kind == "AuthInvalidated", "{kind}");
    }
    assert!(api.pending() <= 4, "one fetch, with its retries");
}

#[tokio::test]
async fn a_key_server_that_is_down_is_not_the_clients_fault() {
    let api = Api::start(|_| crate::support::api::status(404, "")).await;
    let mut options = options();
    options.auth.jwks_url = Some(api.url("/keys"));
    let harness = Harness::start(options).await;
    let mut client = connect(&harness, "c", Some("u"), &signed_by("one", "s")).await;
    assert_eq!(client.error().await["kind"], "ServerOverloaded");
    assert_eq!(client.closed().await, None);
}

#[tokio::test]
async fn one_published_key_is_enough() {
    let mut options = options();
    options.auth.jwk = Some(Secret(jwk("k", SECRET).to_string()));
    let harness = Harness::start(options).await;
    connect(&harness, "c", Some("u"), &token(json!({"sub": "u"}))).await.expect("connected").await;
    refused(connect(&harness, "c", Some("v"), &token(json!({"sub": "u"}))).await, "AuthInvalidated").await;
}

#[tokio::test]
async fn contradicting_token_options_are_refused_at_start() {
    let mut options = jwt_options();
    options.auth.jwks_url = Some("http://k".to_owned());
    let built = gateway::Server::build(options, &prometheus::Registry::new(), pages(Inside::Shown)).await;
    assert!(built.is_err_and(|e| e.to_string().contains("only one")));
}

/// A key for ES512, and what it signs.
struct Es512(aws_lc_rs::signature::EcdsaKeyPair);

impl Es512 {
    fn new() -> Es512 {
        use aws_lc_rs::signature::{ECDSA_P521_SHA512_FIXED_SIGNING, EcdsaKeyPair};
        Es512(EcdsaKeyPair::generate(&ECDSA_P521_SHA512_FIXED_SIGNING).unwrap())
    }

    fn jwk(&self) -> Value {
        use aws_lc_rs::signature::KeyPair;
        let (x, y) = self.0.public_key().as_ref()[1..].split_at(66);
        json!({"kty": "EC", "crv": "P-521", "alg": "ES512", "kid": "e", "x": BASE64.encode(x), "y": BASE64.encode(y)})
    }

    fn token(&self, header: &Value, claims: &Value) -> String {
        let signed = [header, claims].map(|part| BASE64.encode(part.to_string())).join(".");
        let signature = self.0.sign(&aws_lc_rs::rand::SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", BASE64.encode(signature.as_ref()))
    }
}

#[tokio::test]
async fn tokens_may_be_signed_with_es512() {
    let key = Es512::new();
    let header = json!({"alg": "ES512", "typ": "JWT"});
    let good = json!({"sub": "u", "iss": "me", "aud": "you", "exp": FAR, "roles": ["a", 9_007_199_254_740_993_i64]});
    let mut by_key = options();
    by_key.auth.jwk = Some(Secret(key.jwk().to_string()));
    let set = json!({"keys": [
        {"kty": "EC", "crv": "P-256", "alg": "ES256", "x": BASE64.encode([7; 32]), "y": BASE64.encode([8; 32])}, key.jwk()]});
    let api = Api::start(move |_| ok(set.clone())).await;
    let mut by_set = options();
    by_set.auth.jwks_url = Some(api.url("/keys"));
    for mut options in [by_key, by_set] {
        options.auth.issuer = Some("me".to_owned());
        options.auth.audience = Some("you".to_owned());
        let mut harness = Harness::start(options).await;
        let mut open = Vec::new();
        for header in [header.clone(), json!({"alg": "ES512", "kid": "e"})] {
            let mut client =
                connect(&harness, &format!("c{}", open.len()), Some("u"), &key.token(&header, &good)).await;
            client.expect("connected").await;
            assert_eq!(harness.connect().await.context.claims.as_ref().unwrap(), &good);
            open.push(client);
        }
        let with = |name: &str, value: Value| {
            let mut claims = good.clone();
            claims[name] = value;
            key.token(&header, &claims)
        };
        let whole = key.token(&header, &good);
        let (signed, signature) = whole.rsplit_once('.').unwrap();
        for bad in [
            with("exp", json!(1)),
            with("nbf", json!(FAR)),
            with("sub", json!("v")),
            with("sub", Value::Null),
            with("iss", json!("them")),
            with("aud", json!("them")),
            Es512::new().token(&header, &good),
            format!("{signed}."),
            format!("{signed}.{}", BASE64.encode([0; 132])),
            format!("{}.{signature}", signed.replacen('.', ".e30", 1)),
            key.token(&json!({"alg": "ES512", "crit": ["x"], "x": 1}), &good),
            key.token(&json!({"alg": "ES256"}), &good),
            key.token(&json!({"alg": "none"}), &good),
            key.token(&header, &json!("no object")),
        ] {
            refused(connect(&harness, "d", Some("u"), &bad).await, "AuthInvalidated").await;
        }
    }
    let harness = Harness::start(jwt_options()).await;
    refused(connect(&harness, "d", Some("u"), &key.token(&header, &good)).await, "AuthInvalidated").await;
}
