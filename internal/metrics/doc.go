// Package metrics turns what a node knows about itself into Prometheus metrics:
// kvd's own names, and etcd's names beside them, so that etcd's dashboards and
// alerts work.
//
// Metrics come from two places, which differ in who pays. Collector pulls: it
// asks the node for its figures when Prometheus scrapes, so that an unscraped
// node spends nothing on them. Loops is pushed to: distributions cannot be
// reconstructed at a scrape, so raftnode's loops report each batch, save and
// apply to it as they happen.
//
// Invariants:
//
//	M1  A scrape never holds up a loop. The node answers from its own loop like
//	    any other request, and a node that does not answer within collectTimeout
//	    costs the scrape its figures, not the node its time.
//	M2  An observation takes no lock that a scrape holds and looks up no label:
//	    every series is resolved in NewLoops (BenchmarkBatch).
//	M3  Labels take few values: members, kinds of work, results. Keys, values
//	    and client addresses never become labels.
//	M4  An alias shows a metric under etcd's name and never counts on its own.
//	M5  Each HELP text stands alone: it can be read without its neighbors, and no
//	    two are equal (TestMetricsAreAsSaid in cmd/kvd, which also compares
//	    docs/metrics.md with running nodes).
//
// Rejected: gauges that the loops keep up to date, which cost every batch for
// the sake of one scrape in fifteen seconds; a goroutine that samples the node
// in the background, which shows figures of different moments and has to be
// stopped; and Prometheus' default registry, which would make two nodes in one
// process count together.
package metrics
