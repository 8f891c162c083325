package node

import (
	"time"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/raftnode"
)

// stageEnd is a stage of the replication layer and the name of the time that
// leads up to it.
type stageEnd struct {
	name  string
	stage raftnode.Stage
}

// The times of a write: waiting for the node loop, waiting for a batch,
// replicating it to the disks of a quorum, and applying it here. Those of a
// read: having a quorum confirm the leader, and waiting until what it had
// committed is applied here. The last of each ends with the answer.
var (
	writeStages = []stageEnd{
		{"queue", raftnode.StageTaken}, {"propose", raftnode.StageProposed},
		{"commit", raftnode.StageCommitted}, {name: "apply"},
	}
	readStages = []stageEnd{{"readindex", raftnode.StageConfirmed}, {name: "wait"}}
)

// stageWatch turns a raftnode.Timing into stages. Without somebody who asks it
// does nothing.
type stageWatch struct {
	out    *api.Timing
	stages []stageEnd
	timing *raftnode.Timing
	begin  time.Time
}

func beginStages(out *api.Timing, stages []stageEnd) stageWatch {
	if out == nil {
		return stageWatch{}
	}
	return stageWatch{out: out, stages: stages, timing: raftnode.NewTiming(), begin: time.Now()}
}

// end adds the stages. A request that failed ends with the one that it was
// stuck in.
func (w *stageWatch) end() {
	if w.out == nil {
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
		w.out.Stages = append(w.out.Stages, api.Stage{Name: s.name, Took: max(0, at-before)})
		if !passed {
			return
		}
		before = at
	}
}
