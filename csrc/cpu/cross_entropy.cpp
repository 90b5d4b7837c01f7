// Mixed cross-entropy: the forward reads the logits once and keeps two numbers a row; the backward
// reads them again and writes the gradient, into a fresh buffer or over the logits themselves.
#include "cpu/loss_rows.h"
#include <algorithm>
#include <torch/csrc/stable/library.h>

namespace mmix {
namespace {

// A thread should have about this many logits to work on.
constexpr int64_t kLogitsPerThread = 16384;

// One thread's view of a row: contiguous logits, in place where the layout allows, else gathered,
// capped and widened into scratch; and the dense targets t, where labels alone do not say it.
class RowReader {
public:
  explicit RowReader(const LossRows &rows)
      : rows_(rows), a_(rows.args), type_(rows.logits.type),
        acc_(type_ == kDouble ? kDouble : kFloat), stride_(rows.logits.class_stride),
        direct_((stride_ == 1 || rows.classes == 1) && a_.softcap == 0),
        dense_(!rows.labels || (rows.weight && a_.label_smoothing != 0)) {
    if (!direct_) z_.resize(rows.classes * element_size(acc_));
    if (dense_) t_.resize(rows.classes * element_size(acc_));
  }

  void load(int64_t r, const LossRow &row) {
    const char *base = static_cast<const char *>(rows_.logits.data);
    const int64_t offset = rows_.logits.offset(r);
    if (direct_) {
      z = base + offset * element_size(type_);
    } else {
      for (int64_t c = 0; c < rows_.classes; ++c) {
        double v = read(base, type_, offset + c * stride_);
        // A masked class (-inf) stays masked: tanh would make it finite.
        if (a_.softcap != 0 && !(std::isinf(v) && v < 0))
          v = a_.softcap * std::tanh(v / a_.softcap);
        write(z_.data(), acc_, c, v);
      }
      z = z_.data();
    }
    if (dense_) fill_targets(r, row);
  }

  double logit(int64_t c) const { return read(z, row_type(), c); }
  DType row_type() const { return direct_ ? type_ : acc_; }
  bool direct() const { return direct_; }
  const void *targets() const { return dense_ ? t_.data() : nullptr; }
  double target(int64_t c) const { return read(t_.data(), acc_, c); }

  // Scratch gradient (arithmetic dtype) -> out, through the derivative of the cap.
  void scatter(const std::vector<char> &grad, const std::vector<char> &capped, void *out,
               int64_t offset, int64_t stride) const {
    for (int64_t c = 0; c < rows_.classes; ++c) {
      double g = read(grad.data(), acc_, c);
      if (a_.softcap != 0) {
        const double u = read(capped.data(), acc_, c) / a_.softcap;
        g = std::isinf(u) ? 0 : g * (1 - u * u);
      }
      write(out, type_, offset + c * stride, g);
    }
  }

  const void *z = nullptr;

private:
  void fill_targets(int64_t r, const LossRow &row) {
    const int64_t own_at = rows_.labels ? 0 : rows_.target->offset(r);
    const int64_t other_at = rows_.labels ? 0 : rows_.target_b->offset(row.partner);
    const auto value = [](const RowView &v, int64_t at, int64_t c) {
      return read(v.data, v.type, at + c * v.class_stride);
    };
    for (int64_t c = 0; c < rows_.classes; ++c) {
      double t = row.base * rows_.weight_of(c);
      if (!rows_.labels) {
        double mixed = 0;
        if (row.own != 0) mixed += row.own * value(*rows_.target, own_at, c);
        if (row.other != 0) mixed += row.other * value(*rows_.target_b, other_at, c);
        const double w = rows_.weight_of(c);
        t = w == 0 ? 0 : w * row.scale * ((1 - a_.label_smoothing) * mixed + row.base);
      } else {
        t += (c == row.y_own ? row.hot_own : 0) + (c == row.y_other ? row.hot_other : 0);
      }
      write(t_.data(), acc_, c, t);
    }
  }

  const LossRows &rows_;
  const LossArgs &a_;
  DType type_, acc_;
  int64_t stride_;
  bool direct_, dense_;
  std::vector<char> z_, t_;
};

// The sum of t over the classes: the coefficient of logsumexp, and of softmax in the gradient.
double mass_of(const LossRows &rows, const LossRow &row, const RowReader &reader) {
  if (!reader.targets()) return row.hot_own + row.hot_other + row.base * rows.classes;
  double mass = 0;
  for (int64_t c = 0; c < rows.classes; ++c) mass += reader.target(c);
  return mass;
}

double loss_of(const LossRows &rows, const LossRow &row, const RowReader &reader,
               const RowStats &s) {
  double loss = 0;
  // coefficient * (lse - z), absent where the coefficient is exactly 0 (z may be -inf there).
  const auto term = [&](double coef, double shifted) {
    if (coef != 0) loss += coef * (s.log_sum - shifted);
  };
  if (reader.targets()) {
    for (int64_t c = 0; c < rows.classes; ++c) term(reader.target(c), reader.logit(c) - s.max);
  } else {
    if (row.y_own >= 0) term(row.hot_own, reader.logit(row.y_own) - s.max);
    if (row.y_other >= 0) term(row.hot_other, reader.logit(row.y_other) - s.max);
    if (row.base != 0) loss += row.base * (rows.classes * s.log_sum - s.shifted_sum);
  }
  if (row.z_coef != 0) loss += row.z_coef * (s.max + s.log_sum) * (s.max + s.log_sum);
  // A NaN or all -inf row that counts is NaN even where its own logits are finite.
  return std::isnan(s.log_sum) ? s.log_sum : loss;
}

int64_t grain(const LossRows &rows) {
  return std::max<int64_t>(1, kLogitsPerThread / std::max<int64_t>(1, rows.classes));
}

std::tuple<Tensor, Tensor> cross_entropy(Tensor logits, Tensor target, std::optional<Tensor> perm,
                                         std::optional<Tensor> target_b, Tensor lam,
                                         std::optional<Tensor> weight, int64_t ignore_index,
                                         std::string reduction, double label_smoothing,
                                         double z_loss, double softcap) {
  const LossArgs args{logits,    target,          perm,   target_b, lam, weight, ignore_index,
                      reduction, label_smoothing, z_loss, softcap};
  const LossRows rows(args);
  const DType acc = dtype_of(logits.scalar_type()) == kDouble ? kDouble : kFloat;
  const auto acc_dtype = acc == kDouble ? ScalarType::Double : ScalarType::Float;
  std::vector<int64_t> shape;
  for (int64_t d = 0; rows.per_row && d < logits.dim(); ++d)
    if (d != 1) shape.push_back(logits.size(d));
  Tensor loss = torch::stable::new_empty(logits, shape, acc_dtype);
  Tensor stats = torch::stable::new_empty(logits, {rows.count, 2}, acc_dtype);
  void *stats_data = stats.mutable_data_ptr();
  // Row losses are summed in one fixed order, whatever the number of threads.
  std::vector<double> row_loss(rows.count, 0.0);
  const auto &kernels = row_kernels();
  torch::stable::parallel_for(0, rows.count, grain(rows), [&](int64_t begin, int64_t end) {
    RowReader reader(rows);
    for (int64_t r = begin; r < end; ++r) {
      const LossRow row = rows.row(r);
      RowStats s{0, 0, 0};
      if (row.live) {
        reader.load(r, row);
        s = kernels.stats[reader.row_type()](reader.z, rows.classes);
        row_loss[r] = loss_of(rows, row, reader, s);
      }
      write(stats_data, acc, 2 * r, s.max);
      write(stats_data, acc, 2 * r + 1, s.log_sum);
    }
  });
  void *out = loss.mutable_data_ptr();
  if (rows.per_row) {
    for (int64_t r = 0; r < rows.count; ++r) write(out, acc, r, row_loss[r]);
  } else {
    double total = 0;
    for (double v : row_loss) total += v;
    write(out, acc, 0, rows.undefined ? std::numeric_limits<double>::quiet_NaN() : total);
  }
  return {loss, stats};
}

// Writes d(loss)/d(logits) times the upstream gradient into out, which may be the logits.
void gradient_into(Tensor out, const Tensor &grad, const Tensor &stats, const LossArgs &args) {
  const LossRows rows(args);
  const DType type = dtype_of(args.logits.scalar_type()), acc = dtype_of(stats.scalar_type());
  const auto &kernels = row_kernels();
  const void *stats_data = stats.const_data_ptr(), *grad_data = grad.const_data_ptr();
  char *out_data = static_cast<char *>(out.mutable_data_ptr());
  const RowView gradient(out);
  const int64_t stride = gradient.class_stride, elem = element_size(type);
  torch::stable::parallel_for(0, rows.count, grain(rows), [&](int64_t begin, int64_t end) {
    RowReader reader(rows);
    const bool straight = reader.direct() && (stride == 1 || rows.classes == 1);
    std::vector<char> scratch(straight ? 0 : rows.classes * element_size(acc)), copy;
    for (int64_t r = begin; r < end; ++r) {
      LossRow row = rows.row(r);
      const int64_t at = gradient.offset(r);
      if (!row.live) {
        for (int64_t c = 0; c < rows.classes; ++c) write(out_data, type, at + c * stride, 0);
        continue;
      }
      // The upstream gradient scales every coefficient, so that one rounding is left.
      const double g = read(grad_data, acc, rows.per_row ? r : 0);
      row.hot_own *= g;
      row.hot_other *= g;
      row.z_coef *= g;
      row.scale *= g;
      if (rows.labels) row.base *= g;
      reader.load(r, row);
      const double max = read(stats_data, acc, 2 * r), log_sum = read(stats_data, acc, 2 * r + 1);
      const double p = mass_of(rows, row, reader) + 2 * row.z_coef * (max + log_sum);
      // The labels' entries, read before they may be overwritten, combined before rounding.
      const auto at_label = [&](int64_t y, double hot) {
        return p * std::exp((reader.logit(y) - max) - log_sum) - row.base - hot;
      };
      const bool sparse = !reader.targets();
      const bool same = row.y_own == row.y_other;
      const bool put_own = sparse && row.y_own >= 0, put_other = sparse && row.y_other >= 0;
      const double own =
          put_own ? at_label(row.y_own, row.hot_own + (same ? row.hot_other : 0)) : 0;
      const double other =
          put_other ? at_label(row.y_other, row.hot_other + (same ? row.hot_own : 0)) : 0;
      const double base = sparse ? row.base : 0;
      const auto finish = [&](void *dst, DType dst_type, int64_t n) {
        kernels.grad[dst_type](dst, reader.z, reader.targets(), n, max, log_sum, p, base);
        if (put_own) write(dst, dst_type, row.y_own, own);
        if (put_other) write(dst, dst_type, row.y_other, other);
      };
      if (straight) {
        finish(out_data + at * elem, type, rows.classes);
      } else if (reader.row_type() == acc) {
        finish(scratch.data(), acc, rows.classes);
        copy.assign(static_cast<const char *>(reader.z),
                    static_cast<const char *>(reader.z) + rows.classes * element_size(acc));
        reader.scatter(scratch, copy, out_data, at, stride);
      } else { // contiguous half rows, strided gradient: the row kernel's dtype is the logits' own
        finish(scratch.data(), type, rows.classes);
        for (int64_t c = 0; c < rows.classes; ++c)
          write(out_data, type, at + c * stride, read(scratch.data(), type, c));
      }
    }
  });
}

Tensor cross_entropy_backward(Tensor grad, Tensor stats, Tensor logits, Tensor target,
                              std::optional<Tensor> perm, std::optional<Tensor> target_b,
                              Tensor lam, std::optional<Tensor> weight, int64_t ignore_index,
                              std::string reduction, double label_smoothing, double z_loss,
                              double softcap) {
  Tensor out = fresh_like(logits);
  gradient_into(out, grad, stats,
                {logits, target, perm, target_b, lam, weight, ignore_index, reduction,
                 label_smoothing, z_loss, softcap});
  return out;
}

void cross_entropy_backward_(Tensor grad, Tensor stats, Tensor logits, Tensor target,
                             std::optional<Tensor> perm, std::optional<Tensor> target_b, Tensor lam,
                             std::optional<Tensor> weight, int64_t ignore_index,
                             std::string reduction, double label_smoothing, double z_loss,
                             double softcap) {
  gradient_into(logits, grad, stats,
                {logits, target, perm, target_b, lam, weight, ignore_index, reduction,
                 label_smoothing, z_loss, softcap});
}

} // namespace
} // namespace mmix

STABLE_TORCH_LIBRARY_IMPL(mmix_fast, CPU, m) {
  m.impl("cross_entropy", TORCH_BOX(&mmix::cross_entropy));
  m.impl("cross_entropy_backward", TORCH_BOX(&mmix::cross_entropy_backward));
  m.impl("cross_entropy_backward_", TORCH_BOX(&mmix::cross_entropy_backward_));
}
