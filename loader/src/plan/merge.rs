//! One order of the units of several files, each of which has an order of its own.

use super::pass::Pass;

/// For each step of the whole, the file whose next step it is.
///
/// First come the steps of each file up to its last unit of level 0, in the order of the files. The
/// others come by loss decrease per byte where all files state their losses, along the lower convex
/// hull of each; else so that all files are held to about the same share of their bytes.
pub(super) fn order(files: &[Pass]) -> Vec<usize> {
    let required = files.iter().enumerate().flat_map(|(file, pass)| vec![file; pass.required]);
    let mut order: Vec<usize> = required.collect();
    let stated = files.iter().all(|pass| pass.losses.iter().skip(pass.required).all(|loss| loss.is_finite()));
    let stated =
        stated && files.iter().all(|pass| pass.required == 0 || last_required_loss(pass).is_finite());
    let mut rest: Vec<(f64, usize)> = Vec::new();
    for (file, pass) in files.iter().enumerate() {
        let priorities = if stated { gains(pass) } else { shares(pass) };
        rest.extend(priorities.into_iter().map(|priority| (priority, file)));
    }
    // Stable: those of one file keep their order, and the first file comes first among equals.
    rest.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    order.extend(rest.into_iter().map(|(_, file)| file));
    order
}

fn last_required_loss(pass: &Pass) -> f64 {
    pass.required.checked_sub(1).and_then(|last| pass.losses.get(last)).copied().unwrap_or(f64::NAN)
}

/// Loss decrease per byte of each optional step, raised so that it never rises: steps that only pay
/// together have the rate of all of them.
fn gains(pass: &Pass) -> Vec<f64> {
    /// Steps with one rate.
    struct Group {
        bytes: f64,
        gain: f64,
        steps: usize,
    }
    let rate = |group: &Group| match (group.bytes > 0.0, group.gain > 0.0) {
        (true, _) => group.gain / group.bytes,
        (false, true) => f64::INFINITY,
        (false, false) => 0.0,
    };
    let mut groups: Vec<Group> = Vec::new();
    let mut before = last_required_loss(pass);
    for (bytes, loss) in pass.added_bytes.iter().zip(&pass.losses).skip(pass.required) {
        // Nothing is known of what a file without required units loses without its first.
        let gain = if before.is_finite() { before - loss } else { f64::INFINITY };
        before = *loss;
        let mut group = Group { bytes: *bytes as f64, gain, steps: 1 };
        while let Some(last) = groups.pop_if(|last| rate(last) < rate(&group)) {
            group.bytes += last.bytes;
            group.gain += last.gain;
            group.steps += last.steps;
        }
        groups.push(group);
    }
    groups.iter().flat_map(|group| vec![rate(group); group.steps]).collect()
}

/// How far from the end of its optional bytes each optional step begins: 1 at the first.
fn shares(pass: &Pass) -> Vec<f64> {
    let optional = pass.added_bytes.get(pass.required..).unwrap_or(&[]);
    let total: f64 = optional.iter().map(|bytes| *bytes as f64).sum();
    let mut before = 0.0;
    let share = |bytes: &u64| {
        let share = if total > 0.0 { 1.0 - before / total } else { 1.0 };
        before += *bytes as f64;
        share
    };
    optional.iter().map(share).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(required: usize, steps: &[(u64, f64)]) -> Pass {
        Pass {
            identity: [0; 32],
            overhead_bytes: 0,
            elements: 0,
            units: (0..steps.len() as u32).collect(),
            all_units: steps.len(),
            added_bytes: steps.iter().map(|(bytes, _)| *bytes).collect(),
            losses: steps.iter().map(|(_, loss)| *loss).collect(),
            required,
            segments: Vec::new(),
        }
    }

    #[test]
    fn required_units_come_first_then_gains_by_byte() {
        let a = file(1, &[(10, 8.0), (10, 4.0), (10, 3.0)]);
        let b = file(2, &[(5, 9.0), (5, 6.0), (10, 4.0), (10, 3.5)]);
        assert_eq!(order(&[a, b]), [0, 1, 1, 0, 1, 0, 1]);
    }

    #[test]
    fn steps_that_only_pay_together_come_together() {
        let a = file(1, &[(10, 8.0), (10, 8.0), (10, 2.0)]);
        let b = file(1, &[(10, 8.0), (10, 6.0), (10, 4.0)]);
        // 0.3 a byte for both steps of the first, 0.2 for each of the second.
        assert_eq!(order(&[a, b]), [0, 1, 0, 0, 1, 1]);
    }

    #[test]
    fn without_losses_files_keep_pace() {
        let a = file(1, &[(9, f64::NAN), (10, f64::NAN), (10, f64::NAN)]);
        let b = file(1, &[(9, f64::NAN), (5, f64::NAN), (5, f64::NAN), (5, 1.0), (5, 0.5)]);
        assert_eq!(order(&[a, b]), [0, 1, 0, 1, 1, 0, 1, 1]);
    }

    #[test]
    fn units_without_bytes_are_taken_at_once_when_they_help() {
        let a = file(1, &[(10, 8.0), (0, 7.0), (10, 7.0)]);
        let b = file(1, &[(10, 8.0), (1, 1.0)]);
        assert_eq!(order(&[a, b]), [0, 1, 0, 1, 0]);
    }
}
