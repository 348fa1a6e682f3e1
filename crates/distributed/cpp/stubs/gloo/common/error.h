// Stands in for a header of Gloo, of which ProcessGroupGloo.hpp needs nothing.
#pragma once
