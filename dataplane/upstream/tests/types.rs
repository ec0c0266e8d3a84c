//! Values of every type, copied and streamed.

use rows::{Cell, ColumnType};
use testkit::postgres::Version as Server;
use upstream::Stream;

use crate::model::{Fixture, MARK, catch_up, copied, resume};

const TYPES: &str = r#"
CREATE TYPE mood AS ENUM ('sad', 'it''s "fine"');
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE TYPE pair AS (a int, b text);
CREATE TABLE everything (
  id int PRIMARY KEY,
  c_bool bool, c_int2 int2, c_int4 int4, c_int8 int8, c_float4 float4, c_float8 float8, c_numeric numeric, c_money money,
  c_text text, c_varchar varchar(20), c_bpchar char(5), c_char "char", c_name name, c_uuid uuid, c_bytea bytea,
  c_date date, c_time time, c_timetz timetz, c_timestamp timestamp, c_timestamptz timestamptz, c_interval interval,
  c_json json, c_jsonb jsonb, c_inet inet, c_cidr cidr, c_macaddr macaddr, c_macaddr8 macaddr8, c_pg_lsn pg_lsn,
  c_bit bit(3), c_xml xml, c_point point, c_box box, c_int4range int4range, c_tsvector tsvector,
  c_mood mood, c_positive positive, c_pair pair,
  a_bool bool[], a_int4 int4[], a_int8 int8[], a_float8 float8[], a_numeric numeric[], a_text text[], a_json json[], a_jsonb jsonb[],
  a_date date[], a_timestamptz timestamptz[], a_time time[], a_uuid uuid[], a_mood mood[], a_bytea bytea[], a_box box[], a_inet inet[],
  a_positive positive[], a_pair pair[],
  c_int2vector int2vector, c_oidvector oidvector, a_char "char"[], a_int2vector int2vector[], a_bit bit(3)[], a_interval interval[],
  a_money money[], a_range int4range[], c_wide json
);
"#;

/// Rows as the columns after `id`.
const ROWS: [&str; 4] = [
    r#"true, -32768, 2147483647, 9007199254740993, 0.1, 1e300, 12345678901234567890.123, '1.50',
    E'tab\t"quote" \\ ž', 'x', 'ab', 'c', 'n', 'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11', '\x00ff',
    '2024-02-29', '23:59:59.999999', '23:59:59.5+05:30', '1969-12-31 23:59:59.999', '2024-02-29 12:34:56.789012+02', '1 day 02:03',
    '{"b": 1.10, "a":[1, null]}', '{"b": 1.10, "a":[1, null]}', '1.2.3.4', '10.0.0.0/8', '08:00:2b:01:02:03', '08:00:2b:01:02:03:04:05', '16/B374D848',
    '101', '<a>x</a>', '(1,2)', '((0,0),(1,1))', '[1,5)', 'a b', 'sad', 5, '(1,"x y")',
    '{t,f,NULL}', '{{1,2},{3,NULL}}', '{9007199254740993}', '{0.1,1e300,NaN,Infinity}', '{1.50,123456789012345678901}', ARRAY['a', 'b,"c\', NULL, ''],
    ARRAY['{"x": 1}'::json, 'null', NULL], ARRAY['{"x": 1}'::jsonb], '{2024-02-29,infinity}', '{2024-02-29 12:34:56.789012+02,NULL}', '{23:59:59.999}',
    '{A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11}', ARRAY['sad'::mood, 'it''s "fine"'], ARRAY['\x00ff'::bytea],
    '{(1,1),(0,0);(2,2),(1,1)}', '{1.2.3.4,::1/64}', '{1,2}', ARRAY[ROW(1, 'x y')::pair],
    '1 2 3', '10 20', ARRAY['a'::"char", '"', ',', NULL, ''], ARRAY['1 2'::int2vector, ''], '{101,NULL}', ARRAY['1 day 02:03'::interval], '{1.50}',
    ARRAY['[1,5)'::int4range, 'empty'], '{"a": 1, "a": 123456789012345678901234567890, "b": 1e400, "c": "\u0000 x"}'"#,
    r#"false, 0, -2147483648, -9223372036854775808, 'NaN', '-Infinity', 'NaN', '-5',
    '', '', '', '', '', '00000000-0000-0000-0000-000000000000', '',
    'infinity', '24:00:00', '00:00:00+14', 'infinity', '-infinity', '-1 mon',
    'null', 'null', '::1', '::/0', '00:00:00:00:00:00', '00:00:00:00:00:00:00:00', '0/0',
    '000', '', '(1e10,-0)', '((1,1),(1,1))', 'empty', '', 'it''s "fine"', 1, '(,)',
    '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}',
    '', '', ARRAY['\377'::"char"], '{}', '{}', '{}', '{}', '{}', ' [ ] '"#,
    r#"NULL, 1, 1, 1, 3.4028235e38, 5e-324, 'Infinity', '0', 'NULL', 'NULL', '     ', 'é', 'é', 'ffffffff-ffff-ffff-ffff-ffffffffffff', 'abc',
    '4713-01-01 BC', '00:00', '24:00:00-01', '0044-03-15 12:00 BC', '0001-12-31 23:59:59.999999+00 BC', '0',
    '"x"', '"\u00e9"', '1.2.3.4/24', '1.2.3.0/24', 'ff:ff:ff:ff:ff:ff', 'ff:ff:ff:ff:ff:ff:ff:ff', 'FFFFFFFF/FFFFFFFF',
    '111', NULL, NULL, NULL, '(,)', NULL, NULL, NULL, ROW(NULL, NULL)::pair,
    '[0:1]={t,f}', '{{{1}}}', '{-1}', '{-0}', '{0.0001,1e-10}', '{"NULL",NULL}', ARRAY['[1, 2]'::json], ARRAY['1.10'::jsonb],
    '{-infinity,4713-01-01 BC}', '{infinity}', '{24:00:00}', NULL, '{NULL}', '{NULL}', '{NULL}', '{NULL}', '{NULL}', ARRAY[NULL::pair]"#,
    r#"NULL, NULL, NULL, NULL, 16777217, 0.30000000000000004, 0.1, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
    '5874897-12-31', NULL, NULL, '294276-12-31 23:59:59.999999', '10000-01-01', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
    NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
    NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL"#,
];

async fn check(server: Server) {
    let fixture = Fixture::on(server, &format!("{MARK}{TYPES}")).await;
    for (i, row) in ROWS.iter().enumerate() {
        fixture.run(&format!("INSERT INTO everything VALUES ({i}, {row})")).await;
    }
    let (plan, mut model) = copied(&fixture.options).await;
    let copied_rows = model.sorted("everything");
    let spec = model.spec("everything").unwrap();
    let ty = |name: &str| spec.column(name).unwrap().ty;
    for (column, expected) in [
        ("c_bool", ColumnType::Bool),
        ("c_int8", ColumnType::Int),
        ("c_numeric", ColumnType::Float),
        ("c_timetz", ColumnType::Float),
        ("c_inet", ColumnType::Str),
        ("c_mood", ColumnType::Str),
        ("c_jsonb", ColumnType::Json),
        ("a_mood", ColumnType::Json),
        ("c_bytea", ColumnType::Hidden),
        ("c_interval", ColumnType::Hidden),
        ("c_positive", ColumnType::Hidden),
        ("c_pair", ColumnType::Hidden),
        ("c_char", ColumnType::Hidden),
        ("c_int2vector", ColumnType::Hidden),
        ("a_int2vector", ColumnType::Json),
    ] {
        assert_eq!(ty(column), expected, "{column}");
    }
    let mut stream = Stream::start(&fixture.options, resume(&plan, plan.version)).await.unwrap();
    for (i, row) in ROWS.iter().enumerate() {
        fixture
            .run(&format!("DELETE FROM everything WHERE id = {i}; INSERT INTO everything VALUES ({i}, {row})"))
            .await;
    }
    catch_up(&mut stream, &mut model, &fixture.client).await;
    let streamed_rows = model.sorted("everything");
    assert_eq!(copied_rows.len(), ROWS.len());
    for (copied, streamed) in copied_rows.iter().zip(&streamed_rows) {
        assert_eq!(copied, streamed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copy_and_stream_decode_every_type_to_equal_cells() {
    check(Server::V15).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copy_and_stream_agree_on_the_newest_postgres() {
    check(Server::V18).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_are_what_clients_expect() {
    let fixture = Fixture::start(TYPES).await;
    fixture.run(&format!("INSERT INTO everything VALUES (0, {})", ROWS[0])).await;
    let (_, model) = copied(&fixture.options).await;
    let row = model.row("everything");
    let spec = model.spec("everything").unwrap();
    let cell = |name: &str| &row[spec.columns.iter().position(|c| c.name == name).unwrap()];
    let text = |s: &str| Cell::Text(s.into());
    for (name, expected) in [
        ("c_bool", Cell::Bool(true)),
        ("c_int8", Cell::Int(9_007_199_254_740_993)),
        ("c_float4", Cell::Float(0.1)),
        ("c_text", text("tab\t\"quote\" \\ ž")),
        ("c_bpchar", text("ab   ")),
        ("c_uuid", text("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11")),
        ("c_bytea", Cell::Bytes([0, 255].into())),
        ("c_date", Cell::Float(1_709_164_800_000.0)),
        ("c_time", Cell::Float(86_399_999.0)),
        ("c_timetz", Cell::Float(66_599_500.0)),
        ("c_timestamp", Cell::Float(-1.0)),
        ("c_timestamptz", Cell::Float(1_709_202_896_789.012)),
        ("c_json", text(r#"{"b": 1.10, "a":[1, null]}"#)),
        ("c_jsonb", text(r#"{"a": [1, null], "b": 1.10}"#)),
        ("c_inet", text("1.2.3.4")),
        ("c_mood", text("sad")),
        ("c_positive", text("5")),
        ("a_bool", text("[true,false,null]")),
        ("a_int4", text("[[1,2],[3,null]]")),
        ("a_int8", text("[9007199254740993]")),
        ("a_float8", text("[0.1,1e+300,null,null]")),
        ("a_text", text(r#"["a","b,\"c\\",null,""]"#)),
        ("a_json", text(r#"[{"x": 1},null,null]"#)),
        ("a_date", text("[1709164800000,null]")),
        ("c_int2vector", text("1 2 3")),
        ("a_char", text(r#"["a","\"",",",null,""]"#)),
        ("a_bit", text(r#"["101",null]"#)),
        ("a_range", text(r#"["[1,5)","empty"]"#)),
        ("c_wide", text(r#"{"a": 1, "a": 123456789012345678901234567890, "b": 1e400, "c": "\u0000 x"}"#)),
    ] {
        assert_eq!(cell(name), &expected, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unchanged_large_values_are_told_apart_from_null() {
    let fixture = Fixture::start(&format!(
        "{MARK} CREATE TABLE big (id int PRIMARY KEY, n int, body text, other text);
         ALTER TABLE big ALTER body SET STORAGE EXTERNAL;
         CREATE TABLE whole (id int PRIMARY KEY, n int, body text); ALTER TABLE whole ALTER body SET STORAGE EXTERNAL;
         ALTER TABLE whole REPLICA IDENTITY FULL;"
    ))
    .await;
    fixture.run("INSERT INTO big VALUES (1, 1, repeat('x', 100000), NULL); INSERT INTO whole VALUES (1, 1, repeat('y', 100000))").await;
    let (plan, mut model) = copied(&fixture.options).await;
    let mut stream = Stream::start(&fixture.options, resume(&plan, plan.version)).await.unwrap();
    fixture.run("UPDATE big SET n = 2; UPDATE big SET id = 3; UPDATE whole SET n = 2; DELETE FROM whole; INSERT INTO whole VALUES (2, 2, NULL)").await;
    catch_up(&mut stream, &mut model, &fixture.client).await;
    let row = model.row("big");
    assert_eq!((&row[0], &row[1], &row[3]), (&Cell::Int(3), &Cell::Int(2), &Cell::Null));
    assert_eq!(row[2], Cell::Text("x".repeat(100_000).into()));
    assert_eq!(model.row("whole")[0], Cell::Int(2));
}
