// The loss of a chunk of positions and its gradient: one block per position, which reads each row of logits three
// times and writes it once. crates/kernel has the specification: its `losses`, whose formulas these are.

// As `Loss` in crates/cuda/src/loss.rs.
struct Loss {
    // Weight of the divergence.
    double weight;
    double temperature;
    // 1, or the square of the temperature.
    double factor;
    // beta of the JSD, or the skew.
    double parameter;
    // Whether to compute the teacher's own cross-entropy.
    int teacher_ce;
};

// As `Values` in crates/kernel.
struct Values {
    double ce, divergence, teacher_ce;
};

// A softmax over a row: p_j = exp((x_j - max) / T) / sum.
struct Softmax {
    double sum;
    float max;
    // 1 / T.
    float sharpness;

    __device__ void add(float x) {
        // Such a logit has the probability 0, and its difference from another such is no number.
        if (x == -INFINITY) return;
        if (x > max) {
            // The first number meets a sum of 0.
            sum = (sum == 0.0 ? 0.0 : sum * exp_of((max - x) * sharpness)) + 1.0;
            max = x;
        } else {
            sum += exp_of((x - max) * sharpness);
        }
    }

    // The softmax over the columns of both.
    __device__ static Softmax of(Softmax a, Softmax b) {
        if (b.max > a.max) {
            Softmax c = a;
            a = b;
            b = c;
        }
        if (b.sum != 0.0) a.sum += b.max == a.max ? b.sum : b.sum * exp_of((b.max - a.max) * a.sharpness);
        return a;
    }

    // The softmax over a row. Threads read adjacent columns, so that a warp reads memory in one piece.
    __device__ static Softmax of_row(const float *row, int columns, float sharpness) {
        Softmax mine = {0.0, -INFINITY, sharpness};
        for (int j = threadIdx.x; j < columns; j += blockDim.x) mine.add(row[j]);
        return over_block<Softmax>(mine);
    }

    // The negative log-probability of a logit of the row, at T = 1, in nats.
    __device__ double cross_entropy(float x) const { return log(sum) + ((double)max - (double)x); }

    __device__ float inverse() const { return (float)(1.0 / sum); }
};

// Both models at one column: the fields of crates/kernel's `Column`.
struct Column {
    float p, q, ahead, gap;
    double wide_gap;
};

// What a column contributes: the fields of crates/kernel's `Part`.
struct Part {
    float value;
    double slope;
    float share;
};

// Turns the logits of both models at a column into probabilities.
struct Columns {
    float max_student, max_teacher, inverse_student, inverse_teacher, sharpness, log_ratio;

    __device__ Column at(float own, float other) const {
        float x = (own - max_student) * sharpness, y = (other - max_teacher) * sharpness;
        Column column;
        column.p = exp_of(x) * inverse_student;
        column.q = exp_of(y) * inverse_teacher;
        column.ahead = (x - y) - log_ratio;
        column.gap = y - x;
        column.wide_gap = ((double)other - (double)own) * (double)sharpness;
        return column;
    }
};

// The divergences, each with its constants. GAP and SLOPES are those of crates/kernel's `OfColumn`.

struct ForwardKl {
    static const int GAP = 1;
    static const bool SLOPES = false;
    __device__ explicit ForwardKl(double) {}
    __device__ Part part(Column column) const { return {column.q * column.gap, 0.0, column.q}; }
};

struct ReverseKl {
    static const int GAP = -1;
    static const bool SLOPES = true;
    __device__ explicit ReverseKl(double) {}
    __device__ Part part(Column column) const { return {-column.p * column.gap, -column.wide_gap, 0.0f}; }
};

struct Jsd {
    static const int GAP = 0;
    static const bool SLOPES = true;
    float beta, one_less, log_beta, log_one_less;
    __device__ explicit Jsd(double of)
        : beta((float)of), one_less((float)(1.0 - of)), log_beta((float)log(of)), log_one_less((float)log(1.0 - of)) {}
    __device__ Part part(Column column) const {
        float of_teacher = log_beta, of_student = column.ahead + log_one_less;
        float more = ln_1p(exp_of(-fabsf(of_teacher - of_student)));
        bool more_of_teacher = of_teacher > of_student;
        float less_t = (more_of_teacher ? of_teacher : of_student) + more;
        float less_s = (more_of_teacher ? of_teacher - column.ahead : log_one_less) + more;
        float slope = -one_less * less_s;
        return {fmaf(beta * column.q, -less_t, column.p * slope), slope, 0.0f};
    }
};

struct SkewKl {
    static const int GAP = 0;
    static const bool SLOPES = false;
    float log_skew, log_one_less;
    __device__ explicit SkewKl(double skew) : log_skew((float)log(skew)), log_one_less((float)log(1.0 - skew)) {}
    __device__ Part part(Column column) const {
        float of_student = column.ahead + log_one_less;
        float mixed = log_add(log_skew, of_student);
        return {-column.q * mixed, 0.0, column.q * exp_of(of_student - mixed)};
    }
};

struct SkewReverseKl {
    static const int GAP = 0;
    static const bool SLOPES = true;
    float log_skew, log_one_less;
    __device__ explicit SkewReverseKl(double skew) : log_skew((float)log(skew)), log_one_less((float)log(1.0 - skew)) {}
    __device__ Part part(Column column) const {
        float mixed = log_add(log_skew, log_one_less - column.ahead);
        return {-column.p * mixed, -mixed - exp_of(log_skew - mixed), 0.0f};
    }
};

struct TotalVariation {
    static const int GAP = 0;
    static const bool SLOPES = true;
    __device__ explicit TotalVariation(double) {}
    __device__ Part part(Column column) const {
        float difference = column.p - column.q;
        float sign = difference > 0.0f ? 1.0f : difference < 0.0f ? -1.0f : 0.0f;
        return {0.5f * fabsf(difference), 0.5f * sign, 0.0f};
    }
};

// Sums over all columns, which the gradient of each column needs.
struct Sums {
    double value, slope, share;
    __device__ static Sums of(Sums a, Sums b) { return {a.value + b.value, a.slope + b.slope, a.share + b.share}; }
};

// Whether the position is scored. Otherwise, its values and its gradient are 0.
__device__ inline bool is_scored(long long label, float *student, int columns, Values *values) {
    if (label >= 0) return true;
    for (int j = threadIdx.x; j < columns; j += blockDim.x) student[j] = 0.0f;
    if (threadIdx.x == 0) *values = {0.0, 0.0, 0.0};
    return false;
}

// The cross-entropy alone. The teacher may be null.
__device__ void cross_entropy(float *student, const float *teacher, long long label, float scale, int columns,
                              Loss loss, Values *values) {
    if (!is_scored(label, student, columns, values)) return;
    Softmax own = Softmax::of_row(student, columns, 1.0f);
    Softmax of_teacher = own;
    bool asked = teacher && loss.teacher_ce;
    if (asked) of_teacher = Softmax::of_row(teacher, columns, 1.0f);
    float inverse = own.inverse();
    for (int j = threadIdx.x; j < columns; j += blockDim.x) {
        bool is_label = j == label;
        // Only this thread overwrites the label's logit.
        if (is_label) {
            *values = {own.cross_entropy(student[j]), 0.0, asked ? of_teacher.cross_entropy(teacher[j]) : 0.0};
        }
        float p = exp_of(student[j] - own.max) * inverse;
        student[j] = scale * (is_label ? p - 1.0f : p);
    }
}

// The cross-entropy and a divergence.
template <class Divergence>
__device__ void diverge(float *student, const float *teacher, long long label, float scale, int columns, Loss loss,
                        Values *values) {
    if (!is_scored(label, student, columns, values)) return;
    bool is_one = loss.temperature == 1.0;
    float sharpness = (float)(1.0 / loss.temperature);
    Softmax own = Softmax::of_row(student, columns, 1.0f);
    Softmax of_teacher = own;
    if (is_one || loss.teacher_ce) of_teacher = Softmax::of_row(teacher, columns, 1.0f);
    Softmax s = is_one ? own : Softmax::of_row(student, columns, sharpness);
    Softmax t = is_one ? of_teacher : Softmax::of_row(teacher, columns, sharpness);
    double constant = log(s.sum) - log(t.sum);
    Columns at = {s.max, t.max, s.inverse(), t.inverse(), sharpness, (float)constant};
    Divergence divergence(loss.parameter);

    Sums sums = {0.0, 0.0, 0.0};
    for (int j = threadIdx.x; j < columns; j += blockDim.x) {
        Column column = at.at(student[j], teacher[j]);
        Part part = divergence.part(column);
        sums.value += part.value;
        if (Divergence::SLOPES) {
            sums.slope += (double)column.p * part.slope;
            sums.share += column.p;
        } else {
            sums.share += part.share;
        }
    }
    sums = over_block<Sums>(sums);
    // Rounded probabilities do not sum to exactly 1.
    double slope = sums.slope / sums.share;
    float share = (float)sums.share;
    float weight = (float)(loss.weight * loss.factor / loss.temperature);
    float inverse = own.inverse();

    for (int j = threadIdx.x; j < columns; j += blockDim.x) {
        float x = student[j], y = teacher[j];
        bool is_label = j == label;
        if (is_label) {
            double value = loss.factor * (sums.value + Divergence::GAP * constant);
            // Without a softmax of the teacher at T = 1, nobody asks for its cross-entropy.
            double of_label = is_one || loss.teacher_ce ? of_teacher.cross_entropy(y) : 0.0;
            *values = {own.cross_entropy(x), value, of_label};
        }
        Column column = at.at(x, y);
        Part part = divergence.part(column);
        float gradient = Divergence::SLOPES ? column.p * (float)(part.slope - slope)
                                            : fmaf(column.p, share, -part.share);
        float p = is_one ? column.p : exp_of(x - own.max) * inverse;
        student[j] = scale * fmaf(weight, gradient, is_label ? p - 1.0f : p);
    }
}

// student: [positions x columns], overwritten with the gradient. teacher: the same shape. labels: the next token of
// each position, or a negative number. scales: factors of the gradients. One block per position.
#define LOSS(name, function)                                                                                           \
    extern "C" __global__ void name(float *student, const float *teacher, const long long *labels,                     \
                                    const float *scales, Values *values, int columns, Loss loss) {                     \
        size_t row = blockIdx.x, start = row * (size_t)columns;                                                        \
        function(student + start, teacher ? teacher + start : teacher, labels[row], scales[row], columns, loss,        \
                 values + row);                                                                                        \
    }

LOSS(ddk_cross_entropy, cross_entropy)
LOSS(ddk_forward_kl, diverge<ForwardKl>)
LOSS(ddk_reverse_kl, diverge<ReverseKl>)
LOSS(ddk_jsd, diverge<Jsd>)
LOSS(ddk_skew_kl, diverge<SkewKl>)
LOSS(ddk_skew_reverse_kl, diverge<SkewReverseKl>)
LOSS(ddk_total_variation, diverge<TotalVariation>)
