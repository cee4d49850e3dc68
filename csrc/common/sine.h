// The polynomial behind the sines of both backends.
#pragma once

namespace fastdiff {

// sin(2 pi s) = s * (kSine0 + kSine1 * s^2 + ... + kSine4 * s^8) for |s| <= 1/4, with relative error below 6e-9.
constexpr float kSine0 = 6.28318527f;
constexpr float kSine1 = -41.3416775f;
constexpr float kSine2 = 81.6022312f;
constexpr float kSine3 = -76.5749922f;
constexpr float kSine4 = 39.7109182f;

}  // namespace fastdiff
