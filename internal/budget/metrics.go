package budget

import "github.com/prometheus/client_golang/prometheus"

var (
	metricTaken = prometheus.NewDesc("kvd_request_memory_bytes",
		"Memory claimed by the bodies and answers of client requests, in the part reserved for small ones and in the rest.", []string{"part"}, nil)
	metricLimit   = prometheus.NewDesc("kvd_request_memory_limit_bytes", "Limit of kvd_request_memory_bytes over both parts (--request-memory).", nil, nil)
	metricRefused = prometheus.NewDesc("kvd_request_memory_refusals_total", "Requests refused while kvd_request_memory_bytes was at the limit.", nil, nil)
)

// Describe implements prometheus.Collector.
func (b *Budget) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{metricTaken, metricLimit, metricRefused} {
		to <- d
	}
}

// Collect implements prometheus.Collector.
func (b *Budget) Collect(to chan<- prometheus.Metric) {
	to <- prometheus.MustNewConstMetric(metricTaken, prometheus.GaugeValue, float64(b.small.taken.Load()), "small")
	to <- prometheus.MustNewConstMetric(metricTaken, prometheus.GaugeValue, float64(b.large.taken.Load()), "large")
	to <- prometheus.MustNewConstMetric(metricLimit, prometheus.GaugeValue, float64(b.limit))
	to <- prometheus.MustNewConstMetric(metricRefused, prometheus.CounterValue, float64(b.refused.Load()))
}
