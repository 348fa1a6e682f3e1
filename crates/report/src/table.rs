//! The table at the end of a run.

use std::fmt::Write;

use ddk_run::records::{DomainSummary, Summary};

/// A number, or a dash for one that is not known: without a teacher there is no ratio.
pub(crate) fn number(value: f64, decimals: usize) -> String {
    if value.is_nan() {
        "-".to_owned()
    } else {
        format!("{value:.decimals$}")
    }
}

/// Domains, totals and where the time went, as text; one line each, at most 100 characters wide for short names.
pub fn table(summary: &Summary) -> String {
    let width = summary
        .domains
        .keys()
        .map(String::len)
        .max()
        .unwrap_or(0)
        .max(6);
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{:width$}  {:>10}  {:>10}  {:>10}  {:>8}  {:>8}  {:>8}",
        "", "student", "student", "teacher", "ratio", "ratio", "share of"
    );
    let _ = writeln!(
        text,
        "{:width$}  {:>10}  {:>10}  {:>10}  {:>8}  {:>8}  {:>8}",
        "domain", "before", "after", "", "before", "after", "tokens"
    );
    for (name, domain) in &summary.domains {
        let _ = writeln!(
            text,
            "{name:width$}  {:>10.2}  {:>10.2}  {:>10}  {:>8}  {:>8}  {:>7.1}%",
            domain.student_perplexity_before,
            domain.student_perplexity_after,
            number(domain.teacher_perplexity, 2),
            number(domain.ratio_before, 3),
            number(domain.ratio_after, 3),
            100.0 * domain.token_share
        );
    }
    let count = summary.domains.len().max(1) as f64;
    let mean = |value: fn(&DomainSummary) -> f64| {
        number(summary.domains.values().map(value).sum::<f64>() / count, 3)
    };
    let _ = writeln!(
        text,
        "{:width$}  {:>10}  {:>10}  {:>10}  {:>8}  {:>8}",
        "mean",
        "",
        "",
        "",
        mean(|domain| domain.ratio_before),
        mean(|domain| domain.ratio_after)
    );
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
