package metrics

import "github.com/prometheus/client_golang/prometheus"

// aliased shows metrics a second time under other names, without counting
// twice.
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
