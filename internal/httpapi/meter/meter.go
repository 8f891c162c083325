// Package meter counts the requests of package httpapi for Prometheus.
package meter

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/kvd-io/kvd/internal/api"
)

// Metrics is an httpapi.Observer that counts requests for Prometheus. It looks up the metrics of
// each route, method and status once, not for each request.
type Metrics struct {
	requests *prometheus.CounterVec
	took     *prometheus.HistogramVec
	inFlight atomic.Int64 // read by a scrape
	rejected map[api.Code]prometheus.Counter
}

// rejections are the codes of requests that were well-formed but not served, because of
// a limit or the state of the node or the cluster.
var rejections = []api.Code{
	api.TooLarge, api.Overloaded, api.NoLeader, api.Starting, api.Stopping,
	api.NoSpace, api.ReadTimeout, api.Timeout,
}

// New registers the metrics of HTTP requests.
func New(reg prometheus.Registerer) (*Metrics, error) {
	m := &Metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kvd_http_requests_total",
			Help: "Requests by method, route, and status code; code 0 means that the request ended without a response.",
		}, []string{"method", "route", "code"}),
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "kvd_http_request_duration_seconds",
			Help:    "Time from the header of a request to the end of the response, by method and route.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2, 18),
		}, []string{"method", "route"}),
		rejected: make(map[api.Code]prometheus.Counter),
	}
	inFlight := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "kvd_http_inflight_requests",
		Help: "Requests being served, including health probes.",
	}, func() float64 { return float64(m.inFlight.Load()) })
	rejected := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "kvd_rejected_total",
		Help: "Well-formed requests that were not served, by the error code of the response.",
	}, []string{"reason"})
	for _, c := range rejections {
		m.rejected[c] = rejected.WithLabelValues(string(c))
	}
	err := errors.Join(reg.Register(m.requests), reg.Register(m.took), reg.Register(inFlight), reg.Register(rejected))
	if err != nil {
		return nil, fmt.Errorf("register http metrics: %w", err)
	}
	return m, nil
}

// Endpoint is httpapi.Endpoint.
type Endpoint = interface {
	End(status int, took time.Duration)
}

// Begin implements httpapi.Observer.
func (m *Metrics) Begin() { m.inFlight.Add(1) }

// Endpoint implements httpapi.Observer.
func (m *Metrics) Endpoint(route, method string) Endpoint {
	return &endpoint{m: m, route: route, method: method}
}

// Rejected implements httpapi.Observer.
func (m *Metrics) Rejected(code api.Code) {
	if c := m.rejected[code]; c != nil {
		c.Inc()
	}
}

// endpoint counts the requests to a route by a method. Its metrics are made by the first
// request that needs them, so that /metrics lists only routes that are used.
type endpoint struct {
	m             *Metrics
	route, method string
	took          atomic.Pointer[prometheus.Observer]
	codes         [len(usualStatuses)]atomic.Pointer[prometheus.Counter]
}

// End implements httpapi.Endpoint.
func (e *endpoint) End(status int, took time.Duration) {
	e.m.inFlight.Add(-1)
	e.histogram().Observe(took.Seconds())
	e.counter(status).Inc()
}

func (e *endpoint) histogram() prometheus.Observer {
	if o := e.took.Load(); o != nil {
		return *o
	}
	o := e.m.took.WithLabelValues(e.method, e.route)
	e.took.Store(&o)
	return o
}

func (e *endpoint) counter(status int) prometheus.Counter {
	i := usualStatus(status)
	if i < 0 {
		return e.m.requests.WithLabelValues(e.method, e.route, strconv.Itoa(status))
	}
	if c := e.codes[i].Load(); c != nil {
		return *c
	}
	c := e.m.requests.WithLabelValues(e.method, e.route, strconv.Itoa(status))
	e.codes[i].Store(&c)
	return c
}

// usualStatuses are those of requests under load, which are not looked up each time.
var usualStatuses = [...]int{
	http.StatusOK, http.StatusCreated, http.StatusNoContent, http.StatusNotModified, http.StatusNotFound, http.StatusPreconditionFailed,
	http.StatusTooManyRequests, http.StatusServiceUnavailable, http.StatusGatewayTimeout,
}

func usualStatus(status int) int {
	for i, s := range usualStatuses {
		if s == status {
			return i
		}
	}
	return -1
}
