package settings

import (
	"errors"
	"fmt"

	"github.com/spf13/pflag"
)

// configFile is the setting that names the file with other settings.
const configFile = "config-file"

// AddFlags makes a flag of each setting. The other known names become flags too,
// hidden from the help: an unknown flag stops pflag at once, whereas Resolve
// reports every problem of a command line together.
func AddFlags(flags *pflag.FlagSet) {
	for i := range table {
		row := &table[i]
		flags.Var(&flagValue{kind: row.kind, text: row.def}, row.name, row.help)
		flags.Lookup(row.name).NoOptDefVal = row.bare
	}
	for _, name := range allNames() {
		if settingNamed(name) != nil {
			continue
		}
		flags.Var(&flagValue{kind: "text"}, name, "see docs/configuration.md")
		flags.Lookup(name).NoOptDefVal, _ = bareValue(name)
		flags.Lookup(name).Hidden = true
	}
	flags.SortFlags = false
}

// TakenBy reports whether the flags are those of a command that takes the settings.
func TakenBy(flags *pflag.FlagSet) bool { return flags.Lookup(configFile) != nil }

// flagValue keeps the text of a flag for Resolve to parse, so that flags follow the
// same rules as other origins (L3).
type flagValue struct{ kind, text string }

func (v *flagValue) Set(text string) error { v.text = text; return nil }
func (v *flagValue) String() string        { return v.text }
func (v *flagValue) Type() string          { return v.kind }

// FlagLayer returns the settings given on the command line. Only flags that were given
// count: the defaults of flags would hide the environment and the file.
func FlagLayer(flags *pflag.FlagSet) Layer {
	layer := make(Layer)
	flags.Visit(func(f *pflag.Flag) {
		if known(f.Name) {
			layer[f.Name] = Given{Text: f.Value.String(), Origin: "flag --" + f.Name}
		}
	})
	return layer
}

// ExplainFlag adds to an error about an unknown flag which one was probably meant.
// flags are those of the command. Settings are proposed only for a command that
// takes them: to propose --port to a command that just refused --port would send
// its user in circles.
func ExplainFlag(flags *pflag.FlagSet, err error) error {
	var unknown *pflag.NotExistError
	if !errors.As(err, &unknown) || unknown.GetSpecifiedShortnames() != "" {
		return err
	}
	name := unknown.GetSpecifiedName()
	if TakenBy(flags) {
		return fmt.Errorf("%w%s", err, nearest(name, func(name string) string { return "--" + name }))
	}
	var own []string
	flags.VisitAll(func(f *pflag.Flag) { own = append(own, f.Name) })
	if best := closest(name, own); best != "" {
		return fmt.Errorf("%w; did you mean --%s?", err, best)
	}
	return err
}

// Load reads the settings of a serving node from all origins. Its error reports
// the problems of all of them.
func Load(flags *pflag.FlagSet, environ []string) (*Settings, error) {
	layers, err := Layers(flags, environ)
	s, wrong := Resolve(layers...)
	return s, errors.Join(err, wrong)
}

// Layers reads all origins and returns them in order of precedence. flags may be
// nil.
func Layers(flags *pflag.FlagSet, environ []string) ([]Layer, error) {
	var problems problemList
	fromFlags := make(Layer)
	if flags != nil {
		fromFlags = FlagLayer(flags)
	}
	layers := []Layer{fromFlags}
	fromEnv, err := EnvLayer(environ)
	if err != nil {
		problems = append(problems, err)
	}
	layers = append(layers, fromEnv)
	// The name of the file comes from the origins before it, so the file is read last.
	if g, ok := lookUp(layers, configFile); ok && g.Text != "" {
		fromFile, err := FileLayer(g.Text)
		if err != nil {
			problems.add("%s: %w", describe(configFile, g.Origin), err)
		}
		layers = append(layers, fromFile)
	}
	return layers, problems.join()
}
