//! The table at the end of a run.

use std::fmt::Write;

use ddk_run::records::{DomainSummary, Summary};

use crate::document::Table;

/// A number, or a dash for one that is not known: without a teacher there is no ratio.
pub(crate) fn number(value: f64, decimals: usize) -> String {
    if value.is_nan() {
        "-".to_owned()
    } else {
        format!("{value:.decimals$}")
    }
}

/// Means over the domains of the ratio before the first step and after the last; NaN without a teacher.
pub(crate) fn mean_ratios(summary: &Summary) -> (f64, f64) {
    let mean = |of: fn(&DomainSummary) -> f64| {
        let sum: f64 = summary.domains.values().map(of).sum();
        sum / summary.domains.len().max(1) as f64
    };
    (
        mean(|domain| domain.ratio_before),
        mean(|domain| domain.ratio_after),
    )
}

/// The results by domain, and their means.
pub(crate) fn results(summary: &Summary) -> Table {
    let header = [
        "domain",
        "student before",
        "student after",
        "teacher",
        "ratio before",
        "ratio after",
        "share of tokens",
    ];
    let of_domain = |(name, domain): (&String, &DomainSummary)| {
        vec![
            name.clone(),
            number(domain.student_perplexity_before, 2),
            number(domain.student_perplexity_after, 2),
            number(domain.teacher_perplexity, 2),
            number(domain.ratio_before, 3),
            number(domain.ratio_after, 3),
            format!("{:.1} %", 100.0 * domain.token_share),
        ]
    };
    let mut rows: Vec<Vec<String>> = summary.domains.iter().map(of_domain).collect();
    let (before, after) = mean_ratios(summary);
    let (before, after) = (number(before, 3), number(after, 3));
    let mean = ["mean", "", "", "", &before, &after, ""];
    rows.push(mean.map(str::to_owned).to_vec());
    Table {
        header: header.map(str::to_owned).to_vec(),
        rows,
    }
}

/// Results, totals and where the time went, as text.
pub fn table(summary: &Summary) -> String {
    let mut text = results(summary).text();
    let _ = writeln!(
        text,
        "\n{} steps in {} intervals, {} tokens; stopped by {}",
        summary.steps, summary.intervals, summary.tokens, summary.stop_reason
    );
    let _ = writeln!(
        text,
        "distilled in {:.1} s at {:.0} tokens/s; whole run {:.1} s, peak memory {:.2} GB",
        summary.distill_seconds,
        summary.tokens_per_second,
        summary.seconds,
        summary.peak_rss_bytes as f64 / 1e9
    );
    let _ = writeln!(
        text,
        "overlap {:.2}: teacher busy {:.1} s, student {:.1} s, evaluation {:.1} s ({:.1} %); teacher lanes \
         waited for data {:.2} %",
        summary.overlap,
        summary.teacher_busy_seconds,
        summary.student_busy_seconds,
        summary.evaluation_seconds,
        100.0 * summary.evaluation_seconds / summary.distill_seconds.max(1e-9),
        100.0 * summary.data_wait_share
    );
    let _ = writeln!(
        text,
        "saves held training up for {:.2} s ({:.2} %)",
        summary.save_stall_seconds,
        100.0 * summary.save_stall_seconds / summary.distill_seconds.max(1e-9)
    );
    let _ = writeln!(
        text,
        "computed {:.3e} FLOPs: teacher {:.3e}, student {:.3e}, evaluation {:.3e}",
        summary.teacher_flops + summary.student_flops + summary.evaluation_flops,
        summary.teacher_flops,
        summary.student_flops,
        summary.evaluation_flops,
    );
    let _ = writeln!(
        text,
        "DDK's own cost: evaluation and mixture {:.2} % of the FLOPs, {:.2} % of the time",
        100.0 * summary.mixture_flops_share,
        100.0 * summary.mixture_seconds_share
    );
    if let Some(serial) = &summary.serial {
        let ratio = summary.tokens_per_second / serial.tokens_per_second;
        let _ = writeln!(
            text,
            "the same work one part after the other with {} threads: {:.0} tokens/s; overlapped is {} ({ratio:.2} x)",
            serial.threads,
            serial.tokens_per_second,
            if ratio >= 1.0 { "faster" } else { "slower" },
        );
    }
    let _ = writeln!(text, "student: {}", summary.exported);
    text
}
