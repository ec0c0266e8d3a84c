//! A rule's condition to SQL over Postgres, with the meaning that it has for clients.
//!
//! Nothing here negates: every operator has its own opposite, and what is unknown in SQL is false for clients, so that both agree
//! wherever a condition stands. A condition that cannot be decided fails its whole rule and allows nothing.

use protocol::ast::{Ast, Condition, CorrelatedSubquery, ExistsOperator, Literal, Operator, ValuePosition};
use rows::ColumnType;

use crate::catalog::{Column, Table, Tables};
use crate::statement::{Parameter, Statement, is_uuid};

/// What a condition comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Truth {
    Always,
    Never,
    /// SQL, in parentheses where it needs any.
    When(String),
}

impl Truth {
    pub(crate) fn sql(&self) -> &str {
        match self {
            Truth::Always => "true",
            Truth::Never => "false",
            Truth::When(sql) => sql,
        }
    }

    pub(crate) fn all(truths: impl IntoIterator<Item = Truth>) -> Truth {
        let mut parts = Vec::new();
        for truth in truths {
            match truth {
                Truth::Always => {}
                Truth::Never => return Truth::Never,
                Truth::When(sql) => parts.push(sql),
            }
        }
        joined(parts, " AND ", Truth::Always)
    }

    pub(crate) fn any(truths: impl IntoIterator<Item = Truth>) -> Truth {
        let mut parts = Vec::new();
        for truth in truths {
            match truth {
                Truth::Never => {}
                Truth::Always => return Truth::Always,
                Truth::When(sql) => parts.push(sql),
            }
        }
        joined(parts, " OR ", Truth::Never)
    }
}

fn joined(mut parts: Vec<String>, by: &str, of_nothing: Truth) -> Truth {
    match parts.len() {
        0 => of_nothing,
        1 => Truth::When(parts.remove(0)),
        _ => Truth::When(format!("({})", parts.join(by))),
    }
}

fn either(is_true: bool) -> Truth {
    if is_true { Truth::Always } else { Truth::Never }
}

/// Why a rule cannot be decided. For a log.
pub(crate) type Undecided = String;

/// Compiles into one statement.
pub(crate) struct Compiler<'a> {
    tables: &'a Tables,
    statement: &'a mut Statement,
    aliases: usize,
}

/// A value in SQL, by what it is for clients.
struct Operand<'a> {
    class: Class,
    column: Option<(&'a Column, String)>,
    /// Of a literal.
    literal: Option<&'a Literal>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Null,
    Bool,
    Number,
    Text,
    Json,
}

impl<'a> Compiler<'a> {
    pub(crate) fn new(tables: &'a Tables, statement: &'a mut Statement) -> Compiler<'a> {
        Compiler { tables, statement, aliases: 0 }
    }

    /// Over a row of `table` that is called `alias`. At the top, an alternative that cannot be decided is as good as none: it is
    /// told `undecided`, and the others count.
    pub(crate) fn policy(
        &mut self,
        condition: &Condition,
        table: &'a Table,
        alias: &str,
        undecided: &mut Vec<Undecided>,
    ) -> Truth {
        let rules = match condition {
            Condition::Or { conditions } => conditions.as_slice(),
            other => std::slice::from_ref(other),
        };
        let mut truths = Vec::with_capacity(rules.len());
        for rule in rules {
            match self.condition(rule, table, alias) {
                Ok(truth) => truths.push(truth),
                Err(why) => undecided.push(why),
            }
        }
        Truth::any(truths)
    }

    fn condition(&mut self, condition: &Condition, table: &'a Table, alias: &str) -> Result<Truth, Undecided> {
        match condition {
            Condition::And { conditions } => Ok(Truth::all(self.each(conditions, table, alias)?)),
            Condition::Or { conditions } => Ok(Truth::any(self.each(conditions, table, alias)?)),
            Condition::Simple { left, right, op } => self.simple(left, *op, right, table, alias),
            Condition::CorrelatedSubquery { related, op, .. } => self.exists(related, *op, table, alias),
        }
    }

    fn each(&mut self, conditions: &[Condition], table: &'a Table, alias: &str) -> Result<Vec<Truth>, Undecided> {
        conditions.iter().map(|condition| self.condition(condition, table, alias)).collect()
    }

    fn exists(
        &mut self,
        related: &CorrelatedSubquery,
        op: ExistsOperator,
        parent: &Table,
        alias: &str,
    ) -> Result<Truth, Undecided> {
        let ast: &Ast = &related.subquery;
        let is_negated = op == ExistsOperator::NotExists;
        let child = self.tables.get(&ast.table).ok_or_else(|| format!("the table {} is not published", ast.table))?;
        if ast.start.is_some() {
            return Err("a subquery with a cursor".to_owned());
        }
        self.aliases += 1;
        let inner = format!("a{}", self.aliases);
        let mut joins = Vec::new();
        for (ours, theirs) in related.correlation.parent_field.iter().zip(&related.correlation.child_field) {
            joins.push(self.join((column(parent, ours)?, alias), (column(child, theirs)?, &inner))?);
        }
        if let Some(filter) = &ast.filter {
            joins.push(self.condition(filter, child, &inner)?);
        }
        let truth = match Truth::all(joins) {
            Truth::Never => Truth::Never,
            _ if ast.limit == Some(0) => Truth::Never,
            truth => {
                // What is not published is not there for clients and rules.
                let from = match &child.filter {
                    Some(filter) => format!("(SELECT * FROM {} WHERE {filter})", child.sql),
                    None => child.sql.clone(),
                };
                let not = if is_negated { "NOT " } else { "" };
                return Ok(Truth::When(format!("{not}EXISTS (SELECT 1 FROM {from} {inner} WHERE {})", truth.sql())));
            }
        };
        Ok(either(is_negated == (truth == Truth::Never)))
    }

    /// Equality of two columns; null equals nothing.
    fn join(&self, ours: (&Column, &str), theirs: (&Column, &str)) -> Result<Truth, Undecided> {
        let (a, b) = (ours.0, theirs.0);
        if a.ty == ColumnType::Json || b.ty == ColumnType::Json {
            return Err(format!("{} and {} cannot be compared: one holds JSON", a.name, b.name));
        }
        let (left, right) = (format!("{}.{}", ours.1, a.sql), format!("{}.{}", theirs.1, b.sql));
        let is_same = a.type_oid == b.type_oid && a.collation == b.collation && a.is_deterministic;
        let integers = a.ty == ColumnType::Int && b.ty == ColumnType::Int;
        if is_same || integers {
            return Ok(Truth::When(format!("{left} OPERATOR(pg_catalog.=) {right}")));
        }
        if class_of(a) != class_of(b) {
            return Ok(Truth::Never);
        }
        let collate = if class_of(a) == Class::Text { " COLLATE pg_catalog.\"C\"" } else { "" };
        Ok(Truth::When(format!("{}{collate} OPERATOR(pg_catalog.=) {}{collate}", plain(a, &left), plain(b, &right))))
    }

    fn operand<'v>(&self, position: &'v ValuePosition, table: &'v Table, alias: &str) -> Result<Operand<'v>, Undecided>
    where
        'a: 'v,
    {
        Ok(match position {
            ValuePosition::Column { name } => {
                let column = column(table, name)?;
                let sql = format!("{alias}.{}", column.sql);
                Operand { class: class_of(column), column: Some((column, sql)), literal: None }
            }
            ValuePosition::Literal { value } => {
                Operand { class: class_of_literal(value), column: None, literal: Some(value) }
            }
            ValuePosition::Static { .. } => return Err("a parameter that was not bound".to_owned()),
        })
    }

    fn simple(
        &mut self,
        left: &ValuePosition,
        op: Operator,
        right: &ValuePosition,
        table: &Table,
        alias: &str,
    ) -> Result<Truth, Undecided> {
        use Operator::{Eq, Ge, Gt, ILike, In, Is, IsNot, Le, Like, Lt, Ne, NotILike, NotIn, NotLike};
        let left = self.operand(left, table, alias)?;
        let ValuePosition::Literal { value: right } = right else {
            return Err("the right side is no value".to_owned());
        };
        let is_null = *right == Literal::Null;
        if left.class == Class::Null {
            return Ok(either(matches!((op, is_null), (Is, true) | (IsNot, false))));
        }
        let (null, not_null) = self.nullness(&left);
        match op {
            Is if is_null => return Ok(null),
            IsNot if is_null => return Ok(not_null),
            _ if is_null => return Ok(Truth::Never),
            _ => {}
        }
        if left.class == Class::Json {
            return Err("JSON is compared with something else than null".to_owned());
        }
        match op {
            In | NotIn => {
                let Literal::Array(list) = right else { return Err("a list is expected".to_owned()) };
                return Ok(self.is_in(&left, op == NotIn, list, not_null));
            }
            Like | NotLike | ILike | NotILike => {
                let Literal::String(pattern) = right else { return Err("a pattern is expected".to_owned()) };
                if left.class != Class::Text {
                    return Err("what is no text is compared with a pattern".to_owned());
                }
                return Ok(self.like(&left, op, pattern));
            }
            _ => {}
        }
        if left.class != class_of_literal(right) {
            // Values of different kinds are never equal, and in no order.
            return Ok(match op {
                Ne => not_null,
                IsNot => Truth::Always,
                _ => Truth::Never,
            });
        }
        let ordered = |c: &mut Self, op: &str| {
            let (expression, value) = (c.expression(&left), c.value(right));
            let collate = if left.class == Class::Text { " COLLATE pg_catalog.\"C\"" } else { "" };
            Truth::When(format!("{expression}{collate} OPERATOR(pg_catalog.{op}) {value}{collate}"))
        };
        Ok(match op {
            Lt => ordered(self, "<"),
            Gt => ordered(self, ">"),
            Le => ordered(self, "<="),
            Ge => ordered(self, ">="),
            Eq | Is => self.is_in(&left, false, std::slice::from_ref(right), not_null),
            Ne => self.is_in(&left, true, std::slice::from_ref(right), not_null),
            // Everything but this value, null included.
            _ => Truth::any([null, self.is_in(&left, true, std::slice::from_ref(right), not_null)]),
        })
    }

    /// Whether it is null, and whether it is not.
    fn nullness(&self, operand: &Operand<'_>) -> (Truth, Truth) {
        let Some((column, sql)) = &operand.column else { return (Truth::Never, Truth::Always) };
        match column.type_oid {
            // JSON's own null reaches clients as null.
            114 => {
                let is_null = format!("coalesce(pg_catalog.json_typeof({sql}) OPERATOR(pg_catalog.=) 'null', true)");
                (Truth::When(is_null.clone()), Truth::When(format!("NOT {is_null}")))
            }
            3802 => {
                let is_null = format!("coalesce(pg_catalog.jsonb_typeof({sql}) OPERATOR(pg_catalog.=) 'null', true)");
                (Truth::When(is_null.clone()), Truth::When(format!("NOT {is_null}")))
            }
            _ => (Truth::When(format!("{sql} IS NULL")), Truth::When(format!("{sql} IS NOT NULL"))),
        }
    }

    /// Equality with one of `list`, or, negated, with none; null is neither.
    fn is_in(&mut self, left: &Operand<'_>, is_negated: bool, list: &[Literal], not_null: Truth) -> Truth {
        let fitting: Vec<&Literal> = list.iter().filter(|value| class_of_literal(value) == left.class).collect();
        let of_none = if is_negated { not_null } else { Truth::Never };
        let written: Vec<String> = fitting.iter().map(|value| text_of(value)).collect();
        let (expression, values, ty) = match &left.column {
            // As it is, so that an index can be used.
            Some((column, sql)) if column.ty == ColumnType::Int => {
                let whole: Vec<String> = fitting.iter().filter_map(|value| integer(value)).collect();
                (sql.clone(), whole, "int8")
            }
            Some((column, sql)) if column.type_oid == 2950 => {
                (sql.clone(), written.into_iter().filter(|text| is_uuid(text)).collect(), "uuid")
            }
            Some((column, sql)) if matches!(column.type_oid, 25 | 1043) && column.is_deterministic => {
                (sql.clone(), written, "text")
            }
            _ => {
                let collate = if left.class == Class::Text { " COLLATE pg_catalog.\"C\"" } else { "" };
                (format!("{}{collate}", self.expression(left)), written, type_of(left.class))
            }
        };
        let mut values = values;
        if values.is_empty() {
            return of_none;
        }
        let sql = if values.len() == 1 {
            let place = self.statement.bind(Parameter::Text(values.pop()));
            let op = if is_negated { "<>" } else { "=" };
            format!("{expression} OPERATOR(pg_catalog.{op}) {place}::pg_catalog.{ty}")
        } else {
            let place = self.statement.bind(Parameter::Texts(values));
            let op = if is_negated { "OPERATOR(pg_catalog.<>) ALL" } else { "OPERATOR(pg_catalog.=) ANY" };
            format!("{expression} {op} ({place}::pg_catalog.{ty}[])")
        };
        Truth::When(sql)
    }

    fn like(&mut self, left: &Operand<'_>, op: Operator, pattern: &str) -> Truth {
        let is_negated = matches!(op, Operator::NotLike | Operator::NotILike);
        let backslashes = pattern.chars().rev().take_while(|c| *c == '\\').count();
        if backslashes % 2 == 1 {
            // It matches nothing.
            return if is_negated { self.nullness(left).1 } else { Truth::Never };
        }
        let expression = self.expression(left);
        let (expression, pattern) = match op {
            Operator::Like | Operator::NotLike => (expression, pattern.to_owned()),
            _ => {
                let folding = self.tables.folding.as_ref().map(|name| format!(" COLLATE pg_catalog.\"{name}\""));
                let folded = format!("pg_catalog.lower({expression}{})", folding.unwrap_or_default());
                (folded, pattern.to_lowercase())
            }
        };
        let place = self.statement.bind(Parameter::Text(Some(pattern)));
        // LIKE and NOT LIKE, whose escape is the backslash.
        let like = if is_negated { "!~~" } else { "~~" };
        Truth::When(format!("{expression} COLLATE pg_catalog.\"C\" OPERATOR(pg_catalog.{like}) {place}"))
    }

    /// As a value of the class's own type.
    fn expression(&mut self, operand: &Operand<'_>) -> String {
        match (&operand.column, operand.literal) {
            (Some((column, sql)), _) => plain(column, sql),
            (None, Some(literal)) => self.value(literal),
            (None, None) => "NULL".to_owned(),
        }
    }

    fn value(&mut self, literal: &Literal) -> String {
        let place = self.statement.bind(Parameter::Text(Some(text_of(literal))));
        format!("{place}::pg_catalog.{}", type_of(class_of_literal(literal)))
    }
}

fn column<'t>(table: &'t Table, name: &str) -> Result<&'t Column, Undecided> {
    table.column(name).ok_or_else(|| format!("the column {name} of the table {} is not known to clients", table.name))
}

fn class_of(column: &Column) -> Class {
    match column.ty {
        ColumnType::Bool => Class::Bool,
        ColumnType::Int | ColumnType::Float => Class::Number,
        ColumnType::Str => Class::Text,
        ColumnType::Json | ColumnType::Hidden => Class::Json,
    }
}

fn class_of_literal(literal: &Literal) -> Class {
    match literal {
        Literal::Null => Class::Null,
        Literal::Bool(_) => Class::Bool,
        Literal::Int(_) | Literal::Float(_) => Class::Number,
        Literal::String(_) => Class::Text,
        Literal::Array(_) => Class::Json,
    }
}

fn type_of(class: Class) -> &'static str {
    match class {
        Class::Bool => "bool",
        Class::Number => "float8",
        Class::Null | Class::Text | Class::Json => "text",
    }
}

fn text_of(literal: &Literal) -> String {
    match literal {
        Literal::Bool(b) => b.to_string(),
        Literal::Int(i) => i.to_string(),
        Literal::Float(f) => f.to_string(),
        Literal::String(text) => text.clone(),
        Literal::Null | Literal::Array(_) => String::new(),
    }
}

/// The literal, if an integer column can have it.
fn integer(literal: &Literal) -> Option<String> {
    match literal {
        Literal::Int(i) => Some(i.to_string()),
        // Lossless: the range is checked.
        Literal::Float(f) if f.fract() == 0.0 && f.abs() < 9e18 => Some((*f as i64).to_string()),
        _ => None,
    }
}

/// A column's value as clients compare it: text as Postgres prints it, numbers as doubles.
pub(crate) fn plain(column: &Column, sql: &str) -> String {
    match (column.type_oid, column.ty) {
        (25 | 1043, _) => sql.to_owned(),
        (2950, _) => format!("{sql}::pg_catalog.text"),
        (700, _) => format!("{sql}::pg_catalog.text::pg_catalog.float8"),
        // A time with a zone is one of the day in UTC.
        (1266, _) => milliseconds(&format!("({sql} AT TIME ZONE 'UTC')::pg_catalog.time")),
        (1083, _) => format!("pg_catalog.floor({})", milliseconds(sql)),
        (1082 | 1114 | 1184, _) => milliseconds(sql),
        (_, ColumnType::Int | ColumnType::Float) => format!("{sql}::pg_catalog.float8"),
        (_, ColumnType::Bool | ColumnType::Json | ColumnType::Hidden) => sql.to_owned(),
        // Casts to text differ from what is printed: padding, masks of networks.
        (_, ColumnType::Str) => format!("(CASE WHEN {sql} IS NOT NULL THEN pg_catalog.concat({sql}) END)"),
    }
}

fn milliseconds(sql: &str) -> String {
    format!("(EXTRACT(EPOCH FROM {sql}) OPERATOR(pg_catalog.*) 1000)::pg_catalog.float8")
}
