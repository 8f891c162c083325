package catchup

import (
	"fmt"
	"time"
)

// DeliveryStatus is what the leader does for a member that lags too far.
type DeliveryStatus struct {
	To    uint64
	State string // waiting, sending, paused, catching_up
	// Index and BodyBytes are of the body.
	Index     uint64
	BodyBytes int64
	// BehindBytes is the log after the body that the member still lacks, kept for
	// it; 0 before the body has arrived.
	BehindBytes int64
	Since       time.Duration // how long it has been in this state
	Failures    int           // in a row
	Reason      string        // of the last failure
}

// KeptLog is what is kept for members that get a snapshot, and why.
type KeptLog struct {
	Entries    uint64 // on disk, beyond those in memory
	Bytes      int64
	Building   bool // a body is being built
	Deliveries []DeliveryStatus
	// IntakeLimit is how many bytes of writes per second the leader takes so that
	// a member can catch up; 0 means no limit.
	IntakeLimit int64
}

// View describes everything for operators.
func (d *Deliveries) View(now time.Duration) *KeptLog {
	k := &KeptLog{Building: d.building, IntakeLimit: d.limit}
	k.Entries, k.Bytes = d.log.Spooled()
	for _, x := range d.sorted() {
		if x.state == idle {
			continue
		}
		k.Deliveries = append(k.Deliveries, DeliveryStatus{
			To: x.to, State: x.state.String(), Index: x.body.Index(), BodyBytes: x.body.Size,
			BehindBytes: x.behind, Since: now - x.since, Failures: x.fails.Failures, Reason: x.reason,
		})
	}
	return k
}

// Alarm describes the limit on the intake, if there is one.
func (k *KeptLog) Alarm() string {
	if k.IntakeLimit == 0 {
		return ""
	}
	return fmt.Sprintf("catch_up: a member cannot keep up; writes are limited to %d bytes per second until it has caught up", k.IntakeLimit)
}
