//! The flat layout of optimizer state: parameters of one kind share a bucket, and each process owns an equal part of
//! every bucket.

use std::ops::Range;

use ddk_torch::TorchError;
use tch::{Device, Kind, Tensor};

use crate::parallel::Parallel;

/// Maximum size of a bucket with several parameters, in numbers: 64 MiB of fp32.
pub(crate) const BUCKET: i64 = 1 << 24;

/// Each parameter begins at a multiple of this many numbers, so it is aligned like a separate allocation (64 bytes of
/// fp32).
const ALIGNMENT: i64 = 16;

/// The numbers of parameters that share dtype, device and weight decay, laid end to end. `slots` equal slices make up
/// a bucket, and each process owns as many slices as it has slots.
#[derive(Debug)]
pub(crate) struct Bucket {
    pub(crate) decays: bool,
    pub(crate) members: Vec<Member>,
    /// This process's part of the bucket.
    pub(crate) own: Range<i64>,
    /// The pieces of all slices, in order.
    pieces: Vec<Piece>,
    /// First and second moments of `own`.
    pub(crate) moments: [Tensor; 2],
}

/// A parameter in a bucket.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Member {
    /// Its index in the list of parameters.
    pub(crate) parameter: usize,
    /// Where it begins in the bucket.
    pub(crate) at: i64,
    pub(crate) numbers: i64,
}

/// The part of a parameter that lies in one slice. The gradient's norm is summed by pieces, so it does not depend on
/// which process owns them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Piece {
    /// Index of the parameter.
    pub(crate) parameter: usize,
    /// Where the piece begins in the parameter.
    pub(crate) from: i64,
    pub(crate) numbers: i64,
    /// Where the piece begins in the bucket.
    pub(crate) at: i64,
}

/// What the parameters of a bucket share: whether they decay, their dtype and their device.
type Class = (bool, Kind, Device);

/// Creates buckets with zero moments for `parameters`, each with at most `limit` numbers unless a single parameter has
/// more.
pub(crate) fn buckets(
    parameters: &[(String, Tensor)],
    limit: i64,
    parallel: &Parallel,
) -> Result<Vec<Bucket>, TorchError> {
    let mut plans: Vec<(Class, i64, Vec<Member>)> = Vec::new();
    for (index, (_, parameter)) in parameters.iter().enumerate() {
        let class = (parameter.dim() >= 2, parameter.kind(), parameter.device());
        let numbers = parameter.numel() as i64;
        let newest = plans.iter_mut().rfind(|plan| plan.0 == class);
        let fits =
            |plan: &&mut (Class, i64, Vec<Member>)| plan.1 + aligned(numbers, ALIGNMENT) <= limit;
        let member = |at| Member {
            parameter: index,
            at,
            numbers,
        };
        match newest.filter(fits) {
            Some((_, size, members)) => {
                members.push(member(*size));
                *size += aligned(numbers, ALIGNMENT);
            }
            None => plans.push((class, aligned(numbers, ALIGNMENT), vec![member(0)])),
        }
    }
    let bucket = |(class, size, members)| Bucket::new(class, size, members, parallel);
    plans.into_iter().map(bucket).collect()
}

impl Bucket {
    fn new(
        (decays, kind, device): Class,
        size: i64,
        members: Vec<Member>,
        parallel: &Parallel,
    ) -> Result<Self, TorchError> {
        let slice = aligned(size, ALIGNMENT * parallel.slots as i64) / parallel.slots as i64;
        let slices = 0..parallel.slots as i64;
        let slices = slices.map(|index| index * slice..(index + 1) * slice);
        let own = parallel.slots_each() as i64 * slice;
        let start = parallel.rank() as i64 * own;
        let zeros = || Tensor::f_zeros([own], (kind, device));
        Ok(Self {
            decays,
            own: start..start + own,
            pieces: slices.flat_map(|slice| parts(&members, slice)).collect(),
            moments: [zeros()?, zeros()?],
            members,
        })
    }

    /// The pieces that this process owns.
    pub(crate) fn own_pieces(&self) -> impl Iterator<Item = &Piece> {
        self.pieces_of(self.own.clone())
    }

    /// The pieces of a range that begins and ends between slices.
    pub(crate) fn pieces_of(&self, range: Range<i64>) -> impl Iterator<Item = &Piece> {
        let pieces = self.pieces.iter();
        pieces.filter(move |piece| range.contains(&piece.at))
    }

    /// The parts of parameters that lie in a range of the bucket, in order.
    pub(crate) fn parts(&self, range: Range<i64>) -> Vec<Piece> {
        parts(&self.members, range)
    }

    /// The part of the range of process `rank` that begins after its first `after` numbers.
    pub(crate) fn range_of(&self, rank: usize, after: i64, numbers: i64) -> Range<i64> {
        let start = rank as i64 * self.own_numbers() + after;
        start..start + numbers
    }

    /// How many numbers each process owns, with padding.
    pub(crate) fn own_numbers(&self) -> i64 {
        self.own.end - self.own.start
    }

    /// Views of a piece's moments.
    pub(crate) fn moments_of(&self, piece: &Piece) -> Result<[Tensor; 2], TorchError> {
        let [first, second] = &self.moments;
        let view = |whole: &Tensor| whole.f_narrow(0, piece.at - self.own.start, piece.numbers);
        Ok([view(first)?, view(second)?])
    }
}

fn parts(members: &[Member], range: Range<i64>) -> Vec<Piece> {
    let overlap = |member: &Member| {
        let at = member.at.max(range.start);
        let end = (member.at + member.numbers).min(range.end);
        (at < end).then(|| Piece {
            parameter: member.parameter,
            from: at - member.at,
            numbers: end - at,
            at,
        })
    };
    members.iter().filter_map(overlap).collect()
}

impl Piece {
    /// A view of this piece of a contiguous tensor.
    pub(crate) fn of(&self, whole: &Tensor) -> Result<Tensor, TorchError> {
        let flat = whole.detach().f_view([-1])?;
        Ok(flat.f_narrow(0, self.from, self.numbers)?)
    }
}

fn aligned(numbers: i64, to: i64) -> i64 {
    numbers + (-numbers).rem_euclid(to)
}
