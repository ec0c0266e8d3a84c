//! Why a configuration is refused, in words for the person who wrote it.

use std::fmt;

/// One thing wrong with one setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub variable: &'static str,
    /// What is wrong, without the value when it is a secret.
    pub fault: String,
    /// What to do about it.
    pub remedy: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.variable, self.fault, self.remedy)
    }
}

/// Why no configuration came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The usage text was asked for.
    Help(String),
    /// The command line could not be read.
    Usage(String),
    /// Everything that is wrong, at once.
    Problems(Vec<Problem>),
}

impl Refusal {
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Refusal::Help(_) => super::exit::OK,
            Refusal::Usage(_) | Refusal::Problems(_) => super::exit::ERROR,
        }
    }

    /// Help goes to standard output, everything else to standard error.
    pub fn print(&self) {
        match self {
            Refusal::Help(text) => println!("{text}"),
            Refusal::Usage(_) | Refusal::Problems(_) => eprintln!("{self}"),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Help(text) | Refusal::Usage(text) => f.write_str(text.trim_end()),
            Refusal::Problems(problems) => {
                write!(f, "the configuration has {}:", count(problems.len(), "problem"))?;
                for problem in problems {
                    write!(f, "\n  {problem}")?;
                }
                Ok(())
            }
        }
    }
}

impl std::error::Error for Refusal {}

fn count(n: usize, noun: &str) -> String {
    if n == 1 { format!("1 {noun}") } else { format!("{n} {noun}s") }
}
