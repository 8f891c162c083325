package main

import (
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/audit"
	"github.com/kvd-io/kvd/internal/settings"
)

// openAudit opens the audit log; nil without --audit-log. cluster returns the id of the
// cluster, once there is one.
func openAudit(s *settings.Settings, cluster func() string) (*audit.Log, error) {
	if s.AuditLog == "" {
		return nil, nil
	}
	return audit.Open(audit.Options{
		File: s.AuditLog, MaxSizeBytes: s.AuditMaxSize, MaxAge: s.AuditMaxAge, MaxBackups: int(s.AuditMaxBackups),
		Keys: s.AuditKeys, Strict: s.AuditStrict, Salt: cluster,
	})
}

// recorded returns what carries out commands, with the audit log before it if there is one.
func (d *daemon) recorded() audit.Cluster {
	if d.audit == nil {
		return d.node
	}
	return audit.Replicator{Cluster: d.node, Log: d.audit}
}

// auditMetrics are those of the audit log, which may be nil.
type auditMetrics struct{ log *audit.Log }

var (
	auditLines = prometheus.NewDesc("kvd_audit_lines_total", "Lines written to the audit log.", nil, nil)
	auditLost  = prometheus.NewDesc("kvd_audit_lines_dropped_total", "Lines that the audit log lost because the disk was full, slow, or failed.", nil, nil)
)

// Describe implements prometheus.Collector.
func (auditMetrics) Describe(out chan<- *prometheus.Desc) {
	out <- auditLines
	out <- auditLost
}

// Collect implements prometheus.Collector.
func (m auditMetrics) Collect(out chan<- prometheus.Metric) {
	out <- prometheus.MustNewConstMetric(auditLines, prometheus.CounterValue, float64(m.log.Written()))
	out <- prometheus.MustNewConstMetric(auditLost, prometheus.CounterValue, float64(m.log.Dropped()))
}

// reopenAudit opens the audit log anew, for a program that has moved it away.
func (d *daemon) reopenAudit(*settings.Settings) error {
	d.audit.Reopen()
	return nil
}

// warnOfExposure warns whenever rights become enabled while clients can send credentials in
// the clear. It ends with the channel.
func (d *daemon) warnOfExposure(ended <-chan struct{}) {
	exposed := d.settings.Exposed()
	if len(exposed) == 0 {
		return
	}
	select {
	case <-d.node.Ready():
	case <-ended:
		return
	}
	for warned := false; ; {
		changed := d.gate.Changed()
		enabled := d.gate.Enabled()
		if enabled && !warned {
			warnExposed(d.settings, exposed, d.log)
		}
		warned = enabled
		select {
		case <-changed:
		case <-ended:
			return
		}
	}
}

func warnExposed(s *settings.Settings, exposed []string, log *zap.Logger) {
	if s.InsecureAuth {
		log.Warn("rights are enabled, and clients can send passwords and tokens in the clear: --insecure-auth is on; use https:// URLs", zap.Strings("listeners", exposed))
		return
	}
	log.Warn("rights are enabled, and requests with credentials to these listeners are refused: others can read them; use https:// URLs, or --insecure-auth if the network is private",
		zap.Strings("listeners", exposed))
}
