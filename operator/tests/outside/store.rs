//! A real S3 server.

use testkit::s3::{ACCESS_KEY, Faults, S3, SECRET_KEY};
use zero_cache_operator::observe::StoreFault;
use zero_cache_operator::observe::outside::{Inputs, Store};

use super::{Scene, secret};

fn store(endpoint: &str, url: &str, generation: &str) -> Inputs {
    let store = Store {
        url: url.to_owned(),
        generation: generation.to_owned(),
        endpoint: Some(endpoint.to_owned()),
        region: None,
        namespace: String::new(),
        access_key_id: secret(ACCESS_KEY).unwrap(),
        secret_access_key: secret(SECRET_KEY).unwrap(),
        session_token: None,
    };
    Inputs { store: Some(store), ..Inputs::default() }
}

fn put(s3: &S3, key: &str) {
    let path = s3.object("bucket", key);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, b"x").unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_objects_of_one_generation_are_counted_and_of_no_other() {
    let s3 = S3::start("bucket").await.unwrap();
    for key in ["shop/v1/0000/a", "shop/v1/0000/b", "shop/v10/0000/a", "v1/x", "shop/v1x"] {
        put(&s3, key);
    }
    for (url, generation, count) in [
        ("s3://bucket/shop", "v1", 2),
        ("s3://bucket/shop", "v10", 1),
        ("s3://bucket/shop", "v2", 0),
        ("s3://bucket", "v1", 1),
        ("s3://bucket/sho", "v1", 0),
    ] {
        let facts = Scene::new(store(&s3.endpoint(), url, generation)).answered().await;
        assert_eq!((facts.prefixes.get(generation), facts.store_fault), (Some(&count), None), "{url}/{generation}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_objects_than_anybody_wants_to_count_are_not_counted() {
    let s3 = S3::start("bucket").await.unwrap();
    (0..1010).for_each(|n| put(&s3, &format!("v1/{n}")));
    let facts = Scene::new(store(&s3.endpoint(), "s3://bucket", "v1")).answered().await;
    assert_eq!(facts.prefixes["v1"], 1000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_cannot_be_used_says_why_and_heals() {
    let s3 = S3::start("bucket").await.unwrap();
    let mut scene = Scene::new(store(&s3.endpoint(), "s3://missing/shop", "v1"));
    let fault = scene.answered().await.store_fault;
    assert_eq!(fault, Some(StoreFault::NoSuchBucket("there is no bucket missing".to_owned())));
    std::fs::create_dir(s3.root().join("missing")).unwrap();
    scene.until("the bucket", |facts| facts.store_fault.is_none()).await;

    s3.set_faults(Faults { is_denied: true, ..Faults::default() });
    let is_denied = |fault: &Option<StoreFault>| matches!(fault, Some(StoreFault::AccessDenied(text)) if text.contains("AccessDenied"));
    scene.until("the denial", |facts| is_denied(&facts.store_fault)).await;
    s3.set_faults(Faults::default());
    scene.until("access", |facts| facts.store_fault.is_none()).await;

    let mut wrong = store(&s3.endpoint(), "s3://bucket", "v1");
    wrong.store.as_mut().unwrap().secret_access_key = secret("hidden").unwrap();
    let fault = Scene::new(wrong.clone()).answered().await.store_fault.unwrap();
    assert!(matches!(&fault, StoreFault::AccessDenied(text) if text.contains("SignatureDoesNotMatch")), "{fault:?}");
    wrong.store.as_mut().unwrap().access_key_id = secret(format!("{ACCESS_KEY}\n")).unwrap();
    let fault = Scene::new(wrong).answered().await.store_fault.unwrap();
    assert!(matches!(&fault, StoreFault::AccessDenied(text) if text.contains("line end")), "{fault:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_cannot_be_reached_is_named() {
    let s3 = S3::start("bucket").await.unwrap();
    for endpoint in ["http://127.0.0.1:1", "http://no-such-host.invalid"] {
        let fault = Scene::new(store(endpoint, "s3://bucket", "v1")).answered().await.store_fault.unwrap();
        assert!(matches!(&fault, StoreFault::Unreachable(text) if text.contains("bucket")), "{fault:?}");
    }
    s3.set_faults(Faults { errors: 1.0, ..Faults::default() });
    let fault = Scene::new(store(&s3.endpoint(), "s3://bucket", "v1")).answered().await.store_fault.unwrap();
    assert!(matches!(&fault, StoreFault::Unreachable(_)), "{fault:?}");
    assert!(!format!("{fault:?}").contains(SECRET_KEY));
}
