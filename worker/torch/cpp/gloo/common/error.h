// c10d's Gloo header includes this one and uses nothing of it.
#pragma once
