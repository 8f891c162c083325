package metrics

import "github.com/prometheus/client_golang/prometheus"

// aliased collects existing metrics a second time under other names. Registering
// a second histogram instead would double the cost of every observation and
// could drift from the first.
type aliased []aliasedMetric

type aliasedMetric struct {
	desc *prometheus.Desc
	prometheus.Metric
}

// Desc implements prometheus.Metric.
func (a aliasedMetric) Desc() *prometheus.Desc { return a.desc }

// Describe implements prometheus.Collector.
func (l aliased) Describe(ch chan<- *prometheus.Desc) {
	for _, a := range l {
		ch <- a.desc
	}
}

// Collect implements prometheus.Collector.
func (l aliased) Collect(ch chan<- prometheus.Metric) {
	for _, a := range l {
		ch <- a
	}
}
