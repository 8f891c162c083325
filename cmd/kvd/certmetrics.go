package main

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/kvd-io/kvd/internal/certs"
)

// certificateMetrics collects the figures of the certificates for clients and
// for members, as far as they exist.
type certificateMetrics struct{ certificates }

// certificateMetric describes a metric that has one series for the certificate
// for clients and one for the certificate for members.
func certificateMetric(name, help string) *prometheus.Desc {
	return prometheus.NewDesc("kvd_certificate_"+name, help, []string{"for"}, nil)
}

var (
	certificateExpiry   = certificateMetric("expiry_timestamp_seconds", "Expiry time of the certificate for clients or for members, in seconds since 1970.")
	certificateReloads  = certificateMetric("reloads_total", "Changed certificate files that were loaded.")
	certificateFailures = certificateMetric("reload_failures_total", "Changed certificate files that could not be loaded; the previous certificate stays in use.")
	certificateRefusals = certificateMetric("refusals_total", "Certificates of clients or members refused as revoked or untrusted, at a handshake or later.")
)

// Describe implements prometheus.Collector.
func (certificateMetrics) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{certificateExpiry, certificateReloads, certificateFailures, certificateRefusals} {
		to <- d
	}
}

// Collect implements prometheus.Collector.
func (m certificateMetrics) Collect(to chan<- prometheus.Metric) {
	for whom, b := range map[string]*certs.Bundle{"clients": m.clients, "members": m.members} {
		if b == nil {
			continue
		}
		c := b.Counts()
		to <- prometheus.MustNewConstMetric(certificateExpiry, prometheus.GaugeValue, float64(b.NotAfter().Unix()), whom)
		to <- prometheus.MustNewConstMetric(certificateReloads, prometheus.CounterValue, float64(c.Reloads), whom)
		to <- prometheus.MustNewConstMetric(certificateFailures, prometheus.CounterValue, float64(c.Failures), whom)
		to <- prometheus.MustNewConstMetric(certificateRefusals, prometheus.CounterValue, float64(c.Refusals), whom)
	}
}
