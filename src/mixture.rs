//! `ddk mixture`: prints the next mixture weights, and why.

use std::io::Write;

use anyhow::{Result, ensure};
use ddk_jobs::{hint::Hint, output::print_json};
use ddk_mixture::{
    Ddk, DdkNoSmoothing, Feedback, InitialMixture, Perplexities, Policy, Sheared, TrainingSums,
    discrepancy,
};
use ddk_report::document::Table;

use crate::cli;

/// The columns of the explanation, one entry per domain.
#[derive(serde::Serialize)]
struct Explanation {
    domains: Vec<String>,
    ratio: Vec<f64>,
    discrepancy: Vec<f64>,
    previous: Vec<f64>,
    weights: Vec<f64>,
    policy: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    alpha: Option<f64>,
    floor: f64,
    cap: f64,
}

/// Computes the next mixture for the given perplexities and prints it.
///
/// # Errors
/// If an argument is out of range or has the wrong number of values, or if `out` cannot be written.
pub fn run(args: &cli::Mixture, out: &mut dyn Write) -> Result<()> {
    let explanation = explain(args).usage()?;
    if args.json {
        return print_json(&explanation, out);
    }
    let domains = &explanation.domains;
    let weight = match (args.policy.as_str(), explanation.alpha) {
        (_, Some(alpha)) => format!(
            "{alpha} x previous x exp(ratio), normalized, + {} / {} domains (Eq. 2); always between {:.4} and {:.4}",
            1.0 - alpha,
            domains.len(),
            explanation.floor,
            explanation.cap
        ),
        ("sheared", _) => {
            "previous x ratio (x 1 if the ratio is below 1), normalized (dynamic batch loading)"
                .to_owned()
        }
        _ => "the discrepancy; the previous weights have no effect".to_owned(),
    };
    let columns = [
        ("student", 3, &args.student_ppl),
        ("teacher", 3, &args.teacher_ppl),
        ("ratio", 4, &explanation.ratio),
        ("discrepancy", 4, &explanation.discrepancy),
        ("previous", 4, &explanation.previous),
        ("weight", 4, &explanation.weights),
    ];
    let mut table = Table::new(["domain"].into_iter().chain(columns.map(|(name, ..)| name)));
    for (index, name) in domains.iter().enumerate() {
        let numbers = columns.map(|(_, decimals, column)| format!("{:.decimals$}", column[index]));
        table.row([name.clone()].into_iter().chain(numbers));
    }
    write!(out, "{table}")?;
    writeln!(
        out,
        "\nratio        student's perplexity over the teacher's: how far behind the student is\n\
         discrepancy  softmax of the ratios (Eq. 1)\n\
         previous     {}\n\
         weight       {weight}",
        if args.previous.is_some() {
            "the weights given by --previous"
        } else {
            "the discrepancy, as at the first update (no --previous given)"
        },
    )?;
    Ok(())
}

fn explain(args: &cli::Mixture) -> Result<Explanation> {
    let count = args.student_ppl.len();
    let same_length = |name: &str, length: usize| {
        ensure!(
            length == count,
            "--{name} has {length} values, but --student-ppl has {count}: give one per domain, in the same order"
        );
        Ok(())
    };
    same_length("teacher-ppl", args.teacher_ppl.len())?;
    for (name, values) in [
        ("student-ppl", &args.student_ppl),
        ("teacher-ppl", &args.teacher_ppl),
    ] {
        for value in values {
            ensure!(
                value.is_finite() && *value >= 1.0,
                "--{name} contains {value}, expected finite perplexities of at least 1"
            );
        }
    }
    let alpha = args.alpha;
    ensure!(
        (0.0..=1.0).contains(&alpha),
        "--alpha is {alpha}, expected a number from 0 to 1"
    );
    if let Some(names) = &args.domains {
        same_length("domains", names.len())?;
    }
    let numbers = || (1..=count).map(|number| number.to_string()).collect();
    let domains = args.domains.clone().unwrap_or_else(numbers);
    let both = args.student_ppl.iter().zip(&args.teacher_ppl);
    let ratio: Vec<f64> = both.map(|(student, teacher)| student / teacher).collect();
    let discrepancy = discrepancy(&ratio)?;
    let previous = args.previous.as_ref().unwrap_or(&discrepancy).clone();
    if args.previous.is_some() {
        same_length("previous", previous.len())?;
        let sum: f64 = previous.iter().sum();
        let mut weights = previous.iter();
        ensure!(
            weights.all(|weight| (0.0..=1.0).contains(weight)) && (sum - 1.0).abs() <= 1e-3,
            "--previous sums to {sum}, expected weights from 0 to 1 that sum to 1"
        );
    }
    let perplexities = Perplexities {
        student: args.student_ppl.clone(),
        teacher: args.teacher_ppl.clone(),
    };
    let first = InitialMixture::Natural;
    let mut policy = match args.policy.as_str() {
        "ddk" => Policy::Ddk(Ddk::going_on(args.alpha, 1, previous.clone())),
        "sheared" => Policy::Sheared(Sheared::new(1, first, vec![None; count])),
        _ => Policy::DdkNoSmoothing(DdkNoSmoothing::new(1, first)),
    };
    let feedback = Feedback {
        perplexities: Some(&perplexities),
        training: &TrainingSums::new(count),
        decay_left: 1.0,
    };
    let weights = policy.next(&previous, &feedback)?.weights;
    let alpha = policy.alpha();
    let floor = alpha.map_or(0.0, |alpha| (1.0 - alpha) / count as f64);
    Ok(Explanation {
        domains,
        ratio,
        discrepancy,
        previous,
        weights,
        policy: args.policy.clone(),
        alpha,
        floor,
        cap: alpha.unwrap_or(1.0) + floor,
    })
}
