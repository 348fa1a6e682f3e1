//! What the models write: the teacher's texts, the student's first ones and its last ones.

use serde::{Deserialize, Serialize};

use super::part::Gather;
use crate::texts::{TextLine, Writer};

/// Maximum number of the student's lines: the first and the last ones.
const LINES: usize = 64;

/// What the models write after the prompts: `/api/texts`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Texts {
    /// The teacher's, if it wrote any.
    pub teacher: Option<TextLine>,
    /// The student's first line, and the last ones, in the order of the steps.
    pub student: Vec<TextLine>,
}

impl Gather for Texts {
    type Record = TextLine;

    fn add(&mut self, line: TextLine) {
        match line.model {
            Writer::Teacher => self.teacher = Some(line),
            Writer::Student => {
                if self.student.len() >= LINES {
                    self.student.remove(1);
                }
                self.student.push(line);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_and_the_last_lines_stay() {
        let mut texts = Texts::default();
        let line = |step, model| TextLine {
            step,
            model,
            texts: Vec::new(),
        };
        texts.add(line(0, Writer::Student));
        texts.add(line(0, Writer::Teacher));
        for step in 1..=100 {
            texts.add(line(step, Writer::Student));
        }
        let steps: Vec<u64> = texts.student.iter().map(|line| line.step).collect();
        assert_eq!(steps[0], 0);
        assert_eq!(steps[1..], (38..=100).collect::<Vec<u64>>());
        assert_eq!(texts.teacher, Some(line(0, Writer::Teacher)));
    }
}
