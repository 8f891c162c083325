package settings

import "github.com/spf13/pflag"

// AddFlags makes a flag of each setting.
func AddFlags(flags *pflag.FlagSet) {
	for i := range table {
		row := &table[i]
		flags.Var(&flagValue{row: row, text: row.def}, row.name, row.help+" ["+row.env()+"]")
		flags.Lookup(row.name).NoOptDefVal = row.bare
	}
	flags.SortFlags = false
}

// flagValue keeps a flag's text for Resolve to parse, so that a flag is judged
// by the same rules as any other origin.
type flagValue struct {
	row  *setting
	text string
}

func (v *flagValue) Set(text string) error { v.text = text; return nil }
func (v *flagValue) String() string        { return v.text }
func (v *flagValue) Type() string          { return v.row.kind }

// FlagLayer has the settings given on the command line.
func FlagLayer(flags *pflag.FlagSet) Layer {
	layer := make(Layer)
	flags.Visit(func(f *pflag.Flag) {
		if settingNamed(f.Name) != nil {
			layer[f.Name] = Given{Text: f.Value.String(), Origin: "flag --" + f.Name}
		}
	})
	return layer
}
