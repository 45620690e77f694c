// Distributions: waits in a queue, prompts in a step, and two points that stand for many lengths.
#pragma once
#include <array>
#include <utility>

namespace cascadia {

// Chance to wait in GI/M/1 with gamma gaps of squared coefficient of variation scv >= 1 at utilisation `busy`.
double wait_probability(double busy, double scv);

// Weibull waits W = mean * E^a / Gamma(1 + a), E exponential: exponent a and 1 / Gamma(1 + a) for a given squared
// coefficient of variation.
std::pair<double, double> weibull(double scv);

// Prompts e that share a step with one, where bursts of them come Poisson; and de/dprompts. Without bursts, what this
// many + 1 in every step cost each of them, Poisson many of that mean do: 1/(1+e) = E[1/(1+N)].
std::pair<double, double> others(double prompts, double bursts_per_prompt);

// The two-point distribution with the given three moments (Gauss quadrature): points, and their shares of the mean.
void two_points(double mean, double second, double third, std::array<double, 2>& points, std::array<double, 2>& shares);

}  // namespace cascadia
