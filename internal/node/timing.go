package node

import (
	"time"

	"github.com/kvd-io/kvd/internal/raftnode"
)

// stageEnd is a stage of the replication layer, and the name of the time that leads
// up to it.
type stageEnd struct {
	name  string
	stage raftnode.Stage
}

// The times of a write: waiting for the node loop, waiting for a batch, replicating
// the batch to the disks of a quorum, and applying it here. The times of a read:
// having a quorum confirm the leader, and waiting until what the leader had
// committed is applied here. The last of each ends with the answer.
var (
	writeStages = []stageEnd{
		{"queue", raftnode.StageTaken}, {"propose", raftnode.StageProposed},
		{"commit", raftnode.StageCommitted}, {name: "apply"},
	}
	readStages = []stageEnd{{"readindex", raftnode.StageConfirmed}, {name: "wait"}}
)

// stopwatch reports to note how long each stage of a request took. It does nothing
// if note is nil.
type stopwatch struct {
	note   func(stage string, took time.Duration)
	stages []stageEnd
	timing *raftnode.Timing
	begin  time.Time
}

func beginStages(note func(stage string, took time.Duration), stages []stageEnd) stopwatch {
	if note == nil {
		return stopwatch{}
	}
	return stopwatch{note: note, stages: stages, timing: raftnode.NewTiming(), begin: time.Now()}
}

// end reports the stages. The last one of a request that failed is the one in which
// it was stuck.
func (w *stopwatch) end() {
	if w.note == nil {
		return
	}
	var before time.Duration
	last := len(w.stages) - 1
	for i, s := range w.stages {
		at, passed := time.Since(w.begin), false
		if i < last {
			if d, ok := w.timing.At(s.stage); ok {
				at, passed = d, true
			}
		}
		w.note(s.name, max(0, at-before))
		if !passed {
			return
		}
		before = at
	}
}
