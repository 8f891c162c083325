package httpapi

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics is the Observer that counts requests for Prometheus.
type Metrics struct {
	requests *prometheus.CounterVec
	took     *prometheus.HistogramVec
	inFlight prometheus.Gauge
}

// NewMetrics registers the metrics of the HTTP front.
func NewMetrics(reg prometheus.Registerer) (*Metrics, error) {
	m := &Metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kvd_http_requests_total",
			Help: "Requests answered, by method, route and status.",
		}, []string{"method", "route", "code"}),
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "kvd_http_request_duration_seconds",
			Help:    "Time from a request's header to the end of its answer.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2, 18),
		}, []string{"method", "route"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "kvd_http_inflight_requests",
			Help: "Requests in work, health probes included.",
		}),
	}
	err := errors.Join(reg.Register(m.requests), reg.Register(m.took), reg.Register(m.inFlight))
	if err != nil {
		return nil, fmt.Errorf("register http metrics: %w", err)
	}
	return m, nil
}

// Begin implements Observer.
func (m *Metrics) Begin() { m.inFlight.Inc() }

// End implements Observer. A request that ended without an answer counts
// under code 0.
func (m *Metrics) End(route, method string, status int, took time.Duration) {
	m.inFlight.Dec()
	m.requests.WithLabelValues(method, route, code(status)).Inc()
	m.took.WithLabelValues(method, route).Observe(took.Seconds())
}

// code spares the usual statuses the formatting.
func code(status int) string {
	switch status {
	case 200:
		return "200"
	case 201:
		return "201"
	case 204:
		return "204"
	case 404:
		return "404"
	}
	return strconv.Itoa(status)
}
