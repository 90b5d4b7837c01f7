// The loss and the gradient of some elements that a thread has at the same time: M classes of one
// row, or one class of M rows (kAcross).
#pragma once
#include "cuda/kernels/binary_cross_entropy_problem.cuh"
#include "cuda/kernels/cross_entropy_sums.cuh"
#include "cuda/kernels/pack.cuh"

namespace mmix {

// Less than 2 ulp; x is from 1 to 2. __fdividef takes five instructions, since any x may come to
// it.
MMIX_DEVICE float inverse_of(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return 1 / x;
#endif
}
MMIX_DEVICE double inverse_of(double x) { return 1 / x; }
MMIX_DEVICE float log1p_of(float x) { return log1pf(x); }
MMIX_DEVICE double log1p_of(double x) { return log1p(x); }

// softplus(z) = max(z, 0) + log1p(e) with e = exp(-|z|), and its derivative, with coefficients
// `negative` of softplus(z) and `positive` of softplus(-z).
template <class Real> struct Softplus {
  bool up;
  Real size, e, near, far; // near: sigmoid(|z|), far: sigmoid(-|z|), which 1 - near would not give
  MMIX_DEVICE explicit Softplus(Real z)
      : up(z >= 0), size(fabs(z)), e(exp_of(-size)), near(inverse_of(1 + e)), far(e * near) {}
  MMIX_DEVICE Real gradient(Real negative, Real positive) const {
    return negative * (up ? near : far) - positive * (up ? far : near);
  }
  // Adds the part without the logarithm. |z| may be infinite where its coefficient is 0.
  MMIX_DEVICE Real add_to(Real sum, Real negative, Real positive) const {
    const Real by = up ? negative : positive;
    return by == 0 ? sum : sum + by * size;
  }
};

// The losses of some elements. If all logarithms have one coefficient, their sum is the logarithm
// of a product. `above`, the product less 1, keeps the relative accuracy where every e is small. It
// is at most 2 to the number of elements, of which a thread has 32 at a time.
template <class Real> struct BinarySums {
  Real others = 0, above = 0;
  MMIX_DEVICE void multiply(Real e) { above += e * (1 + above); }
  MMIX_DEVICE double total(Real scale) const { return others + scale * log1p_of(above); }
};

// kGeneral: there may be float targets, weights, or a loss for each element.
template <class T, bool kAcross, bool kGeneral> struct BinaryElements {
  using Real = Acc<T>;
  using Row = BinaryRow<Real, kGeneral>;
  const BinaryProblem &a;
  const Row *rows; // of the tile, in shared memory
  Real scale;      // of each loss and gradient
  BinarySums<Real> sums{};

  // Calls f(i, offset) for the elements of a piece.
  template <int M, class F>
  MMIX_DEVICE void each_at(Place place, const RowLayout &at, int row, int c, F f) const {
#pragma unroll
    for (int i = 0; i < M; ++i)
      f(i, rows[kAcross ? row + i : row].at[place] + (kAcross ? c : c + i) * at.class_stride);
  }

  template <int M> MMIX_DEVICE void read_upstream(int row, int c, Real (&v)[M]) const {
    const Real *from = static_cast<const Real *>(a.upstream);
    if (M > 1 && a.wide_upstream)
      return load_as(from + rows[row].at[kUpstream] + c * a.upstream_at.class_stride, v);
    each_at<M>(kUpstream, a.upstream_at, row, c,
               [&](int i, int64_t at) { v[i] = load(from + at); });
  }
  template <int M> MMIX_DEVICE void write_loss(int row, int c, const Pack<Real, M> &v) const {
    Real *to = static_cast<Real *>(a.loss);
    if (M > 1 && a.wide_loss)
      return store_pack(to + rows[row].at[kLoss] + c * a.loss_at.class_stride, v);
    each_at<M>(kLoss, a.loss_at, row, c, [&](int i, int64_t at) { store(to + at, v.at[i]); });
  }
  // Of M classes from c on; across rows, of the one class.
  template <int M> MMIX_DEVICE void class_values(const Values &values, int c, Real (&v)[M]) const {
    Real own[kAcross ? 1 : M];
    if (values.type == kFloat)
      load_as(static_cast<const float *>(values.data) + c, own);
    else
      load_as(static_cast<const T *>(values.data) + c, own);
#pragma unroll
    for (int i = 0; i < M; ++i) v[i] = own[kAcross ? 0 : i];
  }

  // The mixed targets of M elements, from float targets. The loads of both are in flight together.
  template <int M> MMIX_DEVICE void float_targets(int row, int c, Real (&t)[M]) const {
    const Row &of = rows[row];
    Real q[2][M];
    const auto read = [&]<class V>(V *) {
      const auto *own = static_cast<const V *>(a.terms[kTarget].data);
      const auto *partner = static_cast<const V *>(a.terms[kTargetB].data);
      const int64_t step = a.terms[kTarget].at.class_stride;
      const int64_t step_b = a.terms[kTargetB].at.class_stride;
      if (of.own != 0) load_as(own + of.at[kOwnTarget] + c * step, q[0]);
      if (of.other != 0) load_as(partner + of.at[kPartnerTarget] + c * step_b, q[1]);
    };
    if (a.terms[kTarget].type == kByte)
      read(static_cast<uint8_t *>(nullptr));
    else
      visit(a.terms[kTarget].type, read);
    const Real keep = Real(a.keep), base = Real(a.base);
#pragma unroll
    for (int i = 0; i < M; ++i) {
      Real mixed = -Real(0); // adding it changes no bit
      if (of.own != 0) mixed = plus(mixed, times(of.own, plus(times(keep, q[0][i]), base)));
      if (of.other != 0) mixed = plus(mixed, times(of.other, plus(times(keep, q[1][i]), base)));
      t[i] = cut(a, mixed);
    }
  }

  // The gradient g of M elements with targets t and logits z. Adds their losses.
  template <int M>
  MMIX_DEVICE void operator()(int row, int c, const Real (&t)[M], const Real (&z)[M],
                              Real (&g)[M]) {
    if constexpr (kGeneral)
      if (a.weighted || a.per_element) return one_by_one(row, c, t, z, g);
#pragma unroll
    for (int i = 0; i < M; ++i) {
      const Softplus<Real> of(z[i]);
      const Real no = scale * (1 - t[i]), yes = scale * t[i];
      g[i] = of.gradient(no, yes);
      sums.others = of.add_to(sums.others, no, yes);
      sums.multiply(of.e);
    }
  }

private:
  // Each element has coefficients of its own.
  template <int M>
  MMIX_DEVICE void one_by_one(int row, int c, const Real (&t)[M], const Real (&z)[M],
                              Real (&g)[M]) {
    Real weight[M], positive[M], factor[M];
    Pack<Real, M> loss;
#pragma unroll
    for (int i = 0; i < M; ++i) weight[i] = positive[i] = factor[i] = 1;
    if (a.terms[kWeight].data) class_values(a.terms[kWeight], c, weight);
    if (a.pos_weight.data) class_values(a.pos_weight, c, positive);
    if (a.per_element && a.upstream) read_upstream(row, c, factor);
#pragma unroll
    for (int i = 0; i < M; ++i) {
      const Softplus<Real> of(z[i]);
      Real no = weight[i] * (1 - t[i]), yes = weight[i] * positive[i] * t[i];
      // Whatever the logit and the target hold; but a bad row is not absent.
      const bool absent =
          (weight[i] == 0 && !rows[kAcross ? row + i : row].bad) || (no == 0 && yes == 0);
      no *= scale * factor[i], yes *= scale * factor[i];
      g[i] = absent ? Real(0) : of.gradient(no, yes);
      loss.at[i] = absent ? Real(0) : of.add_to((no + yes) * log1p_of(of.e), no, yes);
      sums.others += loss.at[i];
    }
    if (a.per_element && a.loss) write_loss(row, c, loss);
  }
};

} // namespace mmix
