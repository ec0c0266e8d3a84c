use std::future::pending;

use port::Tasks;

#[tokio::test]
async fn a_panic_leaves_nobody_waiting() {
    let tasks = Tasks::default();
    tasks.spawn("breaks", async { panic!("on purpose") });
    tasks.spawn("ends", async {});
    tasks.finished().await;
    assert_eq!(tasks.live(), 0);
}

#[tokio::test]
async fn members_are_counted_up_to_the_limit() {
    let tasks = Tasks::default();
    let first = tasks.admit("first", 2).unwrap();
    tasks.admit("second", 2).unwrap().spawn(pending());
    assert!(tasks.admit("third", 2).is_none());
    let clone = tasks.clone();
    assert_eq!((clone.live(), tasks.live()), (2, 2), "clones are of one set");
    tasks.spawn("unlimited", pending());
    assert_eq!(tasks.live(), 3);
    drop(first);
    assert!(tasks.admit("still too many", 2).is_none());
    assert!(tasks.admit("one more", 3).is_some());
}
