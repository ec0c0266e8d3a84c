//! Values that are larger than a row may be: left out where they are read, and told by table, column and place.

use rows::Cell;
use upstream::{Options, Stream};

use crate::connect::logged;
use crate::model::{Fixture, MARK, Model, catch_up, copied, resume_at};

/// Of the lines about this table, how many have all the words.
fn told(words: &[&str]) -> usize {
    let lines = logged().lock().unwrap();
    let is_it = |line: &&str| line.contains("table=\"heavy\"") && words.iter().all(|word| line.contains(word));
    lines.lines().filter(is_it).count()
}

fn row(model: &Model, id: i64) -> Vec<Cell> {
    let (_, rows) = model.tables.values().find(|(spec, _)| spec.wire_name() == "heavy").unwrap();
    rows.iter().find(|row| row[0] == Cell::Int(id)).unwrap().clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_beyond_the_limit_is_told_by_table_column_and_place() {
    drop(logged().lock().unwrap());
    let fixture = Fixture::start(&format!(
        "{MARK} CREATE TABLE heavy (id int PRIMARY KEY, loose text, firm text NOT NULL);
         INSERT INTO heavy VALUES (1, repeat('secret', 400000), 'x'), (2, repeat('secret', 400000), 'y'), (3, 'z', 'z')"
    ))
    .await;
    let options = Options { row_bytes_max: 1 << 20, ..fixture.options.clone() };
    let (plan, mut model) = copied(&options).await;
    assert_eq!(row(&model, 1)[1..], [Cell::Null, Cell::Text("x".into())]);
    assert_eq!(told(&["column=\"loose\"", "place=a copy", "mebibytes=2", "limit_mebibytes=1"]), 1, "once for a copy");

    for turn in 1..=2 {
        // What was told before a restart is told after it, when it comes again.
        let mut stream = Stream::start(&options, resume_at(&plan, &model)).await.unwrap();
        fixture.run("UPDATE heavy SET firm = repeat('secret', 400000) WHERE id = 3").await;
        fixture.run("UPDATE heavy SET firm = repeat('public', 400000) WHERE id = 3").await;
        catch_up(&mut stream, &mut model, &fixture.client).await;
        assert_eq!(row(&model, 3)[1..], [Cell::Text("z".into()), Cell::Text("".into())]);
        assert_eq!(told(&["column=\"firm\"", "place=the commit at "]), turn);
    }
    let lines = logged().lock().unwrap().clone();
    assert!(!lines.contains("secretsecret"), "a value is in the log");
}
