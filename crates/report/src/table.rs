//! The table at the end of a run.

use ddk_run::{
    records::{DomainSummary, Summary},
    view::{counted, duration},
};

use crate::document::Table;

/// Formats a number, or a dash if it is unknown. Without a teacher, there is no gap.
pub(crate) fn number(value: f64, decimals: usize) -> String {
    if value.is_nan() {
        "-".to_owned()
    } else {
        format!("{value:.decimals$}")
    }
}

/// The mean of a value over the domains.
pub(crate) fn mean(summary: &Summary, of: fn(&DomainSummary) -> f64) -> f64 {
    let sum: f64 = summary.domains.values().map(of).sum();
    sum / summary.domains.len().max(1) as f64
}

/// Means over the domains of the gap before the first step and after the last; NaN without a teacher.
pub(crate) fn mean_gaps(summary: &Summary) -> (f64, f64) {
    let before = mean(summary, |domain| domain.gap_before);
    (before, mean(summary, |domain| domain.gap_after))
}

/// The domain with the largest gap after the last step; none without a teacher.
pub(crate) fn worst_domain(summary: &Summary) -> Option<(&String, &DomainSummary)> {
    let domains = summary.domains.iter();
    let known = domains.filter(|(_, domain)| !domain.gap_after.is_nan());
    known.max_by(|(_, a), (_, b)| a.gap_after.total_cmp(&b.gap_after))
}

/// The results by domain, and their means.
pub(crate) fn results(summary: &Summary) -> Table {
    let header = [
        "domain",
        "gap before",
        "gap after",
        "ratio after",
        "perplexity before",
        "perplexity after",
        "teacher's perplexity",
        "share of tokens",
    ];
    let of_domain = |(name, domain): (&String, &DomainSummary)| {
        vec![
            name.clone(),
            number(domain.gap_before, 3),
            number(domain.gap_after, 3),
            number(domain.ratio_after, 3),
            number(domain.student_perplexity_before, 2),
            number(domain.student_perplexity_after, 2),
            number(domain.teacher_perplexity, 2),
            format!("{:.1}%", 100.0 * domain.token_share),
        ]
    };
    let mut table = Table::new(header).with(summary.domains.iter().map(of_domain));
    let (before, after) = mean_gaps(summary);
    let (before, after) = (number(before, 3), number(after, 3));
    let mean = ["mean", &before, &after, "", "", "", "", ""];
    table.row(mean.map(str::to_owned));
    table
}

/// What the teacher's cache saved; empty if nothing. `computed`: the teacher's FLOPs, including `head` of the LM head.
pub(crate) fn saved(computed: f64, head: f64, saved: f64) -> String {
    if saved == 0.0 {
        return String::new();
    }
    let share = 100.0 * saved / (computed - head + saved);
    format!(
        "the teacher's cache saved {saved:.3e} FLOPs, {share:.1}% of the teacher's without the LM head"
    )
}

/// Totals and where the time went, one line each.
pub(crate) fn facts(summary: &Summary) -> Vec<String> {
    let percent = |share: f64| format!("{:.2}%", 100.0 * share);
    let (teacher, student) = (summary.teacher_flops, summary.student_flops);
    let evaluation = summary.evaluation_flops;
    let mut facts = vec![
        format!(
            "{} in {} on {}; stopped by {}",
            counted(summary.steps, "step"),
            counted(summary.intervals, "interval"),
            counted(summary.tokens, "token"),
            summary.stop_reason
        ),
        format!(
            "distilled in {} at {:.0} tokens/s; whole run {}; peak memory {:.2} GB",
            duration(summary.distill_seconds),
            summary.tokens_per_second,
            duration(summary.seconds),
            summary.peak_rss_bytes as f64 / 1e9
        ),
        format!(
            "{}: teacher busy {}, student {}, evaluations {}",
            overlap(summary.overlap),
            duration(summary.teacher_busy_seconds),
            duration(summary.student_busy_seconds),
            duration(summary.evaluation_seconds)
        ),
        format!(
            "teachers waited for data {} of the time",
            percent(summary.data_wait_share)
        ),
        format!(
            "training waited {} ({} of the time) for new mixtures, evaluations included, and {} for checkpoints",
            duration(summary.boundary_seconds),
            percent(summary.mixture_seconds_share),
            duration(summary.save_stall_seconds)
        ),
        format!(
            "computed {:.3e} FLOPs: teacher {teacher:.3e}, student {student:.3e}, evaluations {evaluation:.3e}",
            teacher + student + evaluation
        ),
        saved(
            teacher,
            summary.teacher_head_flops,
            summary.teacher_flops_saved,
        ),
        steering(summary),
    ];
    facts.retain(|fact| !fact.is_empty());
    if let Some(serial) = &summary.serial {
        let ratio = summary.tokens_per_second / serial.tokens_per_second;
        facts.push(format!(
            "serial baseline on {}: {:.0} tokens/s; overlap is {} ({ratio:.2} x)",
            counted(serial.threads, "thread"),
            serial.tokens_per_second,
            if ratio >= 1.0 { "faster" } else { "slower" },
        ));
    }
    facts.push(format!("student: {}", summary.exported));
    facts
}

/// The cost of steering in FLOPs; empty if no evaluation changed the mixture.
fn steering(summary: &Summary) -> String {
    if summary.intervals < 2 || summary.mixture_flops == 0.0 {
        return String::new();
    }
    format!(
        "the student's evaluations that set mixtures cost {:.2}% of the FLOPs of training",
        100.0 * summary.mixture_flops_share
    )
}

/// The overlap, and how to read it. Below 1, the workers do not only take turns: all of them wait at times, for example
/// while a program beside DDK uses the cores.
fn overlap(overlap: f64) -> String {
    let meaning = if overlap < 0.995 {
        "below 1: at times, neither model computed, for example while other programs used the cores"
    } else {
        "1: in turn, 2: in parallel"
    };
    format!("overlap {overlap:.2} ({meaning})")
}

/// Results, totals and where the time went, as text.
pub fn table(summary: &Summary) -> String {
    format!("{}\n{}\n", results(summary), facts(summary).join("\n"))
}
