package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// porcupine is the second judge. It ignores revisions. Because it may need
// unbounded time and memory, it runs in a process of its own, and a verdict of
// "unknown" is a failure.

// judgeEnv turns the test binary into the judge of the history in the named file.
const judgeEnv = "KVD_E2E_JUDGE"

const (
	judgeTime   = time.Minute
	judgeMemory = 4 << 30
	// maxJudged is a size of history that porcupine can certainly handle.
	maxJudged = 3000
)

// openEnd is the return time of an operation that may take effect at any time.
const openEnd = math.MaxInt64

// judged is an operation as porcupine sees it.
type judged struct {
	Client int
	Kind   kind
	Key    string
	Value  string // written or read
	Found  bool
	Known  bool // the outcome is known
	Call   int64
	Return int64
}

// registers is a map of independent registers.
var registers = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		byKey := make(map[string][]porcupine.Operation)
		for _, o := range history {
			key := o.Input.(judged).Key
			byKey[key] = append(byKey[key], o)
		}
		var out [][]porcupine.Operation
		for _, part := range byKey {
			out = append(out, part)
		}
		return out
	},
	Init: func() any { return register{} },
	Step: func(state, input, _ any) (bool, any) { return state.(register).step(input.(judged)) },
}

type register struct {
	value string
	found bool
}

func (r register) step(o judged) (bool, any) {
	switch o.Kind {
	case opPut:
		return true, register{o.Value, true}
	case opDelete:
		return !o.Known || o.Found == r.found, register{}
	default:
		return o.Found == r.found && o.Value == r.value, r
	}
}

// askPorcupine returns nil if the history is linearizable.
func askPorcupine(t testing.TB, history []judged) error {
	t.Helper()
	data, err := json.Marshal(history)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*judgeTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), judgeEnv+"="+tempFile(t, "history.json", data))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("porcupine: %w\n%s", err, out)
	}
	return nil
}

// judgeMain is the main function of the judge; its exit code is the verdict.
func judgeMain(path string) int {
	if err := judgeFile(path); err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

func judgeFile(path string) error {
	if err := limitMemory(judgeMemory); err != nil {
		return fmt.Errorf("limit the memory: %w", err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var history []judged
	if err := json.Unmarshal(data, &history); err != nil {
		return err
	}
	var operations []porcupine.Operation
	for _, o := range history {
		operations = append(operations, porcupine.Operation{ClientId: o.Client, Input: o, Call: o.Call, Return: o.Return})
	}
	if verdict := porcupine.CheckOperationsTimeout(registers, operations, judgeTime); verdict != porcupine.Ok {
		return fmt.Errorf("the verdict on %d operations is %v", len(operations), verdict)
	}
	return nil
}
