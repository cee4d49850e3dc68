// Constants of the Gaussian error linear unit (arXiv:1606.08415), shared by the CPU and CUDA kernels.
//
//   exact   x * cdf(x) = max(x, 0) - a * cdf(-a), a = |x|, with the normal distribution in its lower tail
//           cdf(-a) = exp(-a^2 / 2) * t * (c0 + c1 * t + ... ), t = 1 / (1 + slope * a), a minimax polynomial
//   tanh    0.5 * x * (1 + tanh(u)) = x * sigmoid(2 * u), 2 * u = x * (kTwiceLinear + kTwiceCubic * x^2)
#pragma once

namespace fastdiff {

constexpr float kInverseSqrt2Pi = 0.398942280f;
constexpr float kFarthestExactGelu = 13.19f;  // where exp(-a^2 / 2) is still a normal float32
constexpr float kFarthestTanhGelu = 9.98f;    // the same of exp(2 * u)

// Relative error 1.3e-7.
struct NormalTail {
  static constexpr float kSlope = 0.3f;
  static constexpr float c0 = 0.119625168f;
  static constexpr float c1 = 0.1208168553f;
  static constexpr float c2 = 0.09952328921f;
  static constexpr float c3 = 0.1298426867f;
  static constexpr float c4 = -0.05609452826f;
  static constexpr float c5 = 0.2089631515f;
  static constexpr float c6 = -0.1587127948f;
  static constexpr float c7 = 0.03603611127f;
};

// Relative error 5e-5, for results of 16 bits.
struct ShortNormalTail {
  static constexpr float kSlope = 0.25f;
  static constexpr float c0 = 0.1013487115f;
  static constexpr float c1 = 0.0805189986f;
  static constexpr float c2 = 0.1803892315f;
  static constexpr float c3 = -0.1038699f;
  static constexpr float c4 = 0.2415929241f;
};

constexpr float kTwiceLinear = 1.59576912f;  // 2 * sqrt(2 / pi)
constexpr float kTwiceCubic = kTwiceLinear * 0.044715f;

}  // namespace fastdiff
