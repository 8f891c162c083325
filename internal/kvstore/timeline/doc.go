// Package timeline is what a store remembers about earlier positions: which revision was
// current at a moment of replicated time, for keeping history by its age, and the state
// hash at some log indexes, for comparing replicas under load.
//
// # Invariants
//
//   - Samples and hashes are bounded. Thinning halves the resolution of the samples and keeps
//     their range (TestThinning).
//   - Of the samples before the compact revision only the last is kept: that revision was
//     still current until the next sample (TestDropUntil).
package timeline
